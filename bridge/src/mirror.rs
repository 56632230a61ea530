//! Mirrors: ports that are sent copies of frames which others send or are sent, as those of Open vSwitch (the table `Mirror` of
//! ovs-vswitchd.conf.db(5)).

use crate::vlan;

/// Most mirrors of a bridge, as of Open vSwitch.
pub(crate) const MAX_MIRRORS: usize = 32;

/// What is copied, and where to.
///
/// A frame that the bridge takes from a port is copied once, whatever selects it: with the bytes that it was received with, its checksum and
/// segmentation left to be done, and the tag of its VLAN as that port is sent it, whether the port is in that VLAN or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Frames from all ports.
    pub select_all: bool,
    /// Frames from these ports.
    pub select_src: Vec<String>,
    /// Frames that are sent to any of these.
    pub select_dst: Vec<String>,
    /// Of these only the ones in these VLANs; none named: all.
    pub select_vlan: Vec<u16>,
    /// The port that is sent the copies. It has no other part in the bridge: it is sent nothing else, and what comes from it is dropped. What
    /// it does not take is lost, and counted there; nobody waits for it. With this port the mirror is removed.
    pub output: String,
}

/// A mirror, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorInfo {
    /// The name that it was added with.
    pub name: String,
    /// What it copies.
    pub mirror: Mirror,
    /// Frames that were copied; the output port's drops say which were lost.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a mirror cannot be added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Names are unique within a bridge.
    #[error("there is one of this name already")]
    Exists,
    /// No mirror has this name. It may have been removed with its output port.
    #[error("there is none of this name")]
    NoSuchMirror,
    /// The bridge has as many as it can have.
    #[error("the bridge has 32 already, which is the most")]
    TooMany,
    /// It says nothing of which ports' frames it is of.
    #[error("it selects no port: name one, or all")]
    SelectsNothing,
    /// A port that has copies alone sends and is sent nothing that could be copied.
    #[error("it selects a port that is an output of mirrors")]
    SelectsOutput,
    /// Not from 0 (frames without tags) to 4094.
    #[error("a VLAN is above 4094")]
    Vlan,
}

impl Mirror {
    /// What is wrong with it by itself.
    pub(crate) fn check(&self) -> Result<(), MirrorError> {
        let mut ports = self.select_src.iter().chain(&self.select_dst).peekable();
        if !self.select_all && ports.peek().is_none() {
            return Err(MirrorError::SelectsNothing);
        }
        if self.select_vlan.iter().any(|vlan| *vlan > vlan::MAX) {
            return Err(MirrorError::Vlan);
        }
        if ports.any(|port| *port == self.output) { Err(MirrorError::SelectsOutput) } else { Ok(()) }
    }
}
