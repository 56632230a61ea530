//! What other threads ask of a bridge's worker, and its answers.

use crossbeam::channel::Sender;

use crate::{Capture, CaptureOptions, Counters, Error, Port, PortSettings, Setting, fdb::Mac};

/// A port's state, for display.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The name that the port was attached with.
    pub name: String,
    /// The port's counters.
    pub counters: Counters,
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
    /// Seconds since then.
    pub age_s: u32,
    /// Whether it is the port's own address, which is not learned.
    pub is_static: bool,
}

/// A command to the worker, with the channel for its reply.
pub(crate) enum Command {
    Attach(String, Box<dyn Port>, PortSettings, Sender<Result<(), Error>>),
    Set(String, Setting, Sender<Result<(), Error>>),
    Capture(String, CaptureOptions, Sender<Result<Capture, Error>>),
    Detach(String, Sender<Result<Box<dyn Port>, Error>>),
    Ports(Sender<Vec<PortInfo>>),
    Fdb(Sender<Vec<FdbRow>>),
    Stop,
}
