//! Network backend: a guest's vif as a port of the bridge.
//!
//! [`VifDriver`] makes the vifs of a domain for the store's control loop. [`Vif`] is one connected vif and a port of the
//! bridge. The modules below it do no I/O: [`Tx`](tx::Tx) and [`Rx`](rx::Rx) are its two rings, [`assemble`] gathers
//! the slots of a packet, and [`handshake`] decides how both ends connect and disconnect.
//!
//! ```
//! use bridge::Bridge;
//! use hypervisor::Hypervisor;
//! use netback::{Attachment, Config, VifDriver};
//! use std::{os::fd::BorrowedFd, sync::Arc};
//!
//! /// Serves all vifs of this domain on one bridge, until `stop` becomes readable.
//! fn serve(hv: Arc<dyn Hypervisor>, bridge: Arc<Bridge>, stop: BorrowedFd<'_>) -> Result<(), Box<dyn std::error::Error>> {
//!     let store = xenstore::Client::new(hv.store()?);
//!     let domid = hv.domid();
//!     let mut driver = VifDriver::new(hv, Config::default(), move |_, _| Ok(Attachment::port_of(bridge.clone())));
//!     Ok(xenbus::driver::run(store, domid, &mut driver, stop)?)
//! }
//! ```

pub mod assemble;
mod attachment;
pub mod backlog;
mod config;
mod copy_batch;
mod device;
mod driver;
mod error;
pub mod handshake;
pub mod logged_ring;
mod offload;
mod pin_table;
mod response_logs;
pub mod rx;
pub mod tx;
mod vif;

pub use attachment::Attachment;
pub use config::Config;
pub use driver::{Resolver, VifDriver, default_vif_name, vif_name};
pub use error::ConnectionError;
pub use vif::{OnFailure, Vif};
