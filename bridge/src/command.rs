//! What other threads ask of a bridge's worker, and its answers.

use crossbeam::channel::Sender;

use crate::{
    BridgeInfo, BridgeSetting, Capture, CaptureOptions, Counters, Error, FdbKind, Mirror, MirrorInfo, Port,
    PortSettings, Setting, fdb::Mac,
};

/// A port's state, for display.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The name that the port was attached with.
    pub name: String,
    /// The port's counters.
    pub counters: Counters,
    /// What is in force for the port.
    pub settings: PortSettings,
}

/// An entry that the forwarding database is given, or that is to be removed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station's address.
    pub mac: Mac,
    /// The VLAN, 0 where frames are in none; `None`: each of the port's, as Linux's bridge does, or of more than 64 that of untagged
    /// frames.
    pub vlan: Option<u16>,
    /// The name of the port that the station is at.
    pub port: String,
    /// What is to be given: static, sticky or dynamic.
    pub kind: FdbKind,
}

/// Which entries are to be removed: those of which all is true that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdbFilter {
    /// They are at this port.
    pub port: Option<String>,
    /// They are in this VLAN.
    pub vlan: Option<u16>,
    /// They are of this kind.
    pub kind: Option<FdbKind>,
}

/// What an earlier process was given for a port, which need not be there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The address that is the port's own: a port of this name with another one is another guest's.
    pub address: Option<Mac>,
    /// What it is to have.
    pub given: Given,
}

/// What [`Awaited`] is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// An entry of the forwarding database, at its port.
    Entry(FdbEntry),
    /// A mirror of this name, at its output.
    Mirror(String, Mirror),
}

impl Given {
    /// The name of the port.
    pub fn port(&self) -> &str {
        match self {
            Given::Entry(entry) => &entry.port,
            Given::Mirror(_, mirror) => &mirror.output,
        }
    }
}

/// An entry of the forwarding database, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The station's address.
    pub mac: Mac,
    /// The VLAN in which it was seen; 0 where frames are in none.
    pub vlan: u16,
    /// The name of the port at which it was last seen.
    pub port: String,
    /// Seconds since then; 0 where it does not expire.
    pub age_s: u32,
    /// How it came to be.
    pub kind: FdbKind,
}

/// A command to the worker, with the channel for its reply.
pub(crate) enum Command {
    Attach(String, Box<dyn Port>, PortSettings, Sender<Result<(), Error>>),
    Set(String, Setting, Sender<Result<(), Error>>),
    Capture(String, CaptureOptions, Sender<Result<Capture, Error>>),
    Detach(String, Sender<Result<Box<dyn Port>, Error>>),
    Ports(Sender<Vec<PortInfo>>),
    Fdb(Sender<Vec<FdbRow>>),
    FdbAdd(FdbEntry, bool, Sender<Result<(), Error>>),
    FdbDelete(Mac, Option<u16>, String, Sender<Result<(), Error>>),
    FdbFlush(FdbFilter, Sender<Result<usize, Error>>),
    SetBridge(BridgeSetting, Sender<Result<(), Error>>),
    Info(Sender<Result<BridgeInfo, Error>>),
    MirrorAdd(String, Mirror, Sender<Result<(), Error>>),
    MirrorDelete(String, Sender<Result<(), Error>>),
    Mirrors(Sender<Vec<MirrorInfo>>),
    GiveAgain(Awaited, Sender<Result<(), Error>>),
    Awaited(Sender<Vec<Awaited>>),
    Stop,
}
