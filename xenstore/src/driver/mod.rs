//! The control loop of a backend driver: finds the devices of one kind, watches both ends of each, and lets a
//! [`BackDevice`] answer what they say. Block and net share it.
//!
//! The loop does all that touches the store; a device only looks at a [`View`] and gives an [`Answer`]. One thread
//! runs it, until a descriptor says stop. One device's errors, or its frontend's flood of writes (XSA-349), never
//! disturb another: a device is looked at [`credit::BURST`] times at once and then at a fixed pace.
//!
//! Closing is as libxl does it: the toolstack writes `online` = 0 and `state` = 5 at the backend's node, the device
//! goes through Closing to Closed as its frontend does, the toolstack removes the nodes, the device is dropped.

mod control;
mod credit;
mod publish;
mod waker;
mod watched;

use std::os::fd::BorrowedFd;

pub use waker::Waker;

use crate::xenbus::Device;
use crate::{Client, DomId, Error, Keys, XenbusState};

/// What both ends of a device say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// All keys at the backend's node: the toolstack's and our own.
    pub own: Keys,
    /// The backend's state as it stands in the store: ours, or Closing written by a toolstack.
    pub own_state: XenbusState,
    /// The frontend's state; Closed where its node is gone.
    pub other_state: XenbusState,
    /// The frontend's keys; read only while it says Initialised or Connected and this end is not Connected or is
    /// looked at for the first time, and empty otherwise. At most 2048 of them.
    pub other: Keys,
    /// The toolstack wants this device: `online` is absent or not 0.
    pub online: bool,
}

/// What a device does with what it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Written below the backend's node, in one transaction with the state.
    pub keys: Keys,
    /// The backend's new state; `None` leaves it as it is.
    pub state: Option<XenbusState>,
    /// Writes the state even where it stands already: how a frontend is told of a new size.
    pub rewrite: bool,
    /// Told in the log and at `error/<node>/error`: an errno and a text.
    pub error: Option<Failure>,
}

/// An error as toolstacks read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A positive errno.
    pub errno: i32,
    /// What went wrong, naming key or file, found and expected.
    pub what: String,
}

impl Failure {
    /// An error.
    pub fn new(errno: i32, what: impl ToString) -> Failure {
        Failure { errno, what: what.to_string() }
    }
}

/// Makes the devices of one kind.
pub trait BackDriver {
    /// The kind as paths spell it: `vbd`, `vif`.
    fn kind(&self) -> &str;

    /// A device appeared. `view.own` holds the toolstack's keys, `view.own_state` what an earlier backend left.
    /// The device is asked at once what to do.
    ///
    /// # Errors
    /// The device cannot be served: the failure is told, the state goes to Closing, and the device is probed again
    /// once the toolstack changed a key. With EBUSY a new device is first probed again for a few seconds, and one
    /// that is Connected, which another process serves then, for as long as that takes.
    fn probe(&mut self, device: &Device, view: &View, waker: Waker) -> Result<Box<dyn BackDevice>, Failure>;
}

/// One device. Dropping it ends its service: its node vanished, or the driver stops.
pub trait BackDevice {
    /// Something changed at either end, or somebody woken. Must not wait for the peer or for the disk: what takes
    /// time is done elsewhere and wakes when it is done.
    fn changed(&mut self, view: &View) -> Answer;

    /// The driver stops: ends all service and waits for it.
    fn stop(&mut self) {}
}

/// Serves the devices of `driver`'s kind in domain `domid` until `stop` becomes readable; then every device is
/// stopped. States stay as they are: a frontend that can reconnect waits for the next backend, whether this one
/// ended in order or was killed.
///
/// # Errors
/// Only those of the store's connection.
pub fn run(
    client: Client,
    domid: DomId,
    driver: &mut dyn BackDriver,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    control::Control::new(client, domid, driver)?.run(stop)
}
