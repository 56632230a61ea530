// Not a core: does I/O or calls a hypervisor.

//! The control loop of a backend driver: finds the devices of one kind, watches both ends of each, and calls a
//! [`BackDevice`] when either changes. The block and the network backend share it.
//!
//! The loop makes all accesses to the store; a device takes a [`DeviceState`] and returns an [`Update`]. The loop runs
//! on one thread until a stop descriptor is readable. Neither one device's errors nor its frontend's flood of writes
//! (XSA-349) disturb another device: a device's state is read at most 50 times at once and then 50 times a second, all of one
//! domain's devices 1,000 times and then 200 times a second, only the keys that are known to the driver are read, and each
//! turn of the loop ends after a few milliseconds.
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
//!     fn frontend_keys(&self) -> &'static [&'static str] {
//!         &["ring-ref", "ring-ref%u", "event-channel"]
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
mod domain_budgets;
mod entry;
mod errno;
mod publish;
mod reconnect;
mod registry;
mod target;
mod unserved;
mod waker;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use crate::device_state::{DeviceState, Failure, Update};
pub use errno::errno;
use event_loop::Connector;
pub use registry::{Info, Registry};
use ring_abi::DomId;
pub use waker::Waker;

use crate::Device;
use crate::stats::Stats;
use xenstore::{Client, Error};

/// Makes the devices of one kind.
pub trait BackDriver {
    /// The kind as paths spell it: `vbd`, `vif`.
    fn kind(&self) -> &str;

    /// The names of a frontend's keys that devices read, with `%u` for a number; others are not read from the store, however
    /// many the frontend writes.
    fn frontend_keys(&self) -> &'static [&'static str];

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

/// What a device has used and is being released: `true` once it is. Called every few milliseconds.
pub type Released = Box<dyn Fn() -> bool>;

/// One device. It is dropped when its node is removed or the driver stops, and [released](BackDevice::release) before the state Closed
/// of a device that the toolstack does not want any more is written.
pub trait BackDevice {
    /// Handles a change at either end, or a [`Waker::wake`]. It must not wait for the peer or for the disk: another
    /// thread does what takes time and wakes the loop when it is done.
    fn changed(&mut self, seen: &DeviceState) -> Update;

    /// The device's counters, over all its connections; `None` if it counts nothing. Called once, before
    /// [`BackDevice::changed`].
    fn stats(&self) -> Option<Arc<dyn Stats>> {
        None
    }

    /// Whether somebody else serves the device, as a kernel's backend does: nothing is written to its nodes.
    fn is_foreign(&self) -> bool {
        false
    }

    /// Ends the device because the toolstack does not want it any more. Where that takes longer, what is returned says when what it
    /// used is free. Closed is written only then: who sees it Closed may use its image or its interface elsewhere.
    fn release(self: Box<Self>) -> Option<Released> {
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
    control::Control::new(client, None, domid, driver, registry.clone())?.run(stop)
}

/// Serves devices as [`run_registered`] does, over a connection to `store` that is made again after it was lost, as long as the
/// connector says ConnectionRefused: what connects devices to their frontends works on meanwhile.
///
/// # Errors
/// `store` cannot be connected for another reason.
pub fn run_connected(
    store: &dyn Connector,
    domid: DomId,
    driver: &mut dyn BackDriver,
    registry: &Registry,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    let client = Client::connect(store)?;
    control::Control::new(client, Some(store), domid, driver, registry.clone())?.run(stop)
}
