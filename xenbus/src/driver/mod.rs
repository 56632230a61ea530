// Not a core: does I/O or calls a hypervisor.

//! The control loop of a backend driver: finds the devices of one kind, watches both ends of each, and calls a
//! [`BackDevice`] when either changes. The block and the network backend share it.
//!
//! The loop makes all accesses to the store; a device takes a [`DeviceState`] and returns an [`Update`]. The loop runs
//! on one thread until a stop descriptor is readable. Neither one device's errors nor its frontend's flood of writes
//! (XSA-349) disturb another device: a device's state is read at most 50 times at once and then 50 times a second.
//!
//! Devices close as libxl closes them: the toolstack writes `online` = 0 and `state` = 5 at the backend's node, the
//! device goes through Closing to Closed as its frontend does, the toolstack removes the nodes, and the device is
//! dropped.
//!
//! ```
//! use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};
//! use xenbus::Device;
//! use xenbus::{Keys, XenbusState};
//!
//! struct Disks;
//! struct Disk;
//!
//! impl BackDriver for Disks {
//!     fn kind(&self) -> &str {
//!         "vbd"
//!     }
//!
//!     fn probe(&mut self, _: &Device, _: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
//!         Ok(Box::new(Disk))
//!     }
//! }
//!
//! impl BackDevice for Disk {
//!     fn changed(&mut self, seen: &DeviceState) -> Update {
//!         match (seen.own_state, seen.other_state) {
//!             (XenbusState::Initialising, _) => {
//!                 let keys = Keys::default().with("sectors", 2048);
//!                 Update { keys, state: Some(XenbusState::InitWait), ..Update::default() }
//!             }
//!             (_, XenbusState::Closed) if !seen.online => {
//!                 Update { state: Some(XenbusState::Closed), ..Update::default() }
//!             }
//!             _ => Update::default(),
//!         }
//!     }
//! }
//! ```

mod control;
mod publish;
mod registry;
mod target;
mod waker;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;
pub use registry::{Info, Registry};
use ring_abi::DomId;
pub use waker::Waker;

use crate::stats::Stats;
use crate::{Device, Keys, XenbusState};
use xenstore::{Client, Error};

/// The state and keys of both ends of a device at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// All keys at the backend's node: the toolstack's and the backend's own.
    pub own: Keys,
    /// The backend's state in the store: written by the backend, or Closing written by a toolstack.
    pub own_state: XenbusState,
    /// The frontend's state; Closed where its node is removed.
    pub other_state: XenbusState,
    /// The frontend's keys, at most 2048 of them. Read only while the frontend is Initialised or Connected and the
    /// backend is not Connected or is probed; empty otherwise.
    pub other: Keys,
    /// The toolstack wants this device: `online` is absent or not 0.
    pub online: bool,
}

/// What a device writes after it has seen a [`DeviceState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Keys written below the backend's node, in one transaction with the state.
    pub keys: Keys,
    /// The backend's new state; `None` does not change it.
    pub state: Option<XenbusState>,
    /// Writes the state even where it does not change, which fires the frontend's watch: how a frontend learns of a
    /// new size.
    pub rewrite: bool,
    /// Written to the log and to `error/<node>/error`: an errno and a text.
    pub error: Option<Failure>,
}

/// An error as toolstacks read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A positive errno.
    pub errno: i32,
    /// What went wrong, naming key or file, found and expected.
    pub what: String,
    /// It may pass in a moment: what the device needs is in use, and its user on the way out.
    pub may_pass: bool,
}

impl Failure {
    /// Makes a failure of an errno and a text.
    pub fn new(errno: i32, what: impl ToString) -> Failure {
        Failure { errno, what: what.to_string(), may_pass: false }
    }

    /// Makes the failure (EBUSY) that something is in use, by a device that is being removed or a process that is exiting.
    pub fn in_use_for_now(what: impl ToString) -> Failure {
        Failure { may_pass: true, ..Failure::new(Errno::EBUSY as i32, what) }
    }
}

/// Makes the devices of one kind.
pub trait BackDriver {
    /// The kind as paths spell it: `vbd`, `vif`.
    fn kind(&self) -> &str;

    /// Makes the device for a new node. `seen.own` holds the toolstack's keys, `seen.own_state` the state that an
    /// earlier backend has written. [`BackDevice::changed`] is called next.
    ///
    /// Calls to this and to the device are made in the device's `tracing` span, with the fields `domid` and `devid`;
    /// a thread that serves the device may enter [`tracing::Span::current`] as taken here.
    ///
    /// # Errors
    /// The device cannot be served: the failure is reported, the state goes to Closing, and the device is probed again
    /// once the toolstack has changed a key. If [`Failure::may_pass`], it is first probed again for a few seconds. A device
    /// that an earlier backend has served (InitWait to Connected) is not closed, which would take it from its guest: it is
    /// probed again, once a second at last, until it can be served or is removed.
    fn probe(
        &mut self,
        device: &Device,
        seen: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure>;
}

/// One device. It is dropped when its node is removed, before the state Closed of a device that the toolstack does not want
/// any more is written, or when the driver stops: who sees it Closed finds what it used free.
pub trait BackDevice {
    /// Handles a change at either end, or a [`Waker::wake`]. It must not wait for the peer or for the disk: another
    /// thread does what takes time and wakes the loop when it is done.
    fn changed(&mut self, seen: &DeviceState) -> Update;

    /// The device's counters, over all its connections; `None` if it counts nothing. Called once, before
    /// [`BackDevice::changed`].
    fn stats(&self) -> Option<Arc<dyn Stats>> {
        None
    }

    /// Ends all service, and waits until it has ended, because the driver stops.
    fn stop(&mut self) {}
}

/// Serves the devices of `driver`'s kind in domain `domid` until `stop` becomes readable; then every device is
/// stopped. States stay as they are in the store: a frontend that can reconnect waits for the next backend, whether
/// this one was stopped or killed.
///
/// # Errors
/// The store's connection failed.
pub fn run(
    client: Client,
    domid: DomId,
    driver: &mut dyn BackDriver,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    run_registered(client, domid, driver, &Registry::default(), stop)
}

/// Serves devices as [`run`] does, and keeps them in `registry`, for other threads to read.
///
/// # Errors
/// Those of [`run`].
pub fn run_registered(
    client: Client,
    domid: DomId,
    driver: &mut dyn BackDriver,
    registry: &Registry,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    control::Control::new(client, domid, driver, registry.clone())?.run(stop)
}
