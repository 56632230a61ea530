//! Network backend: a guest's vif as a port of the bridge.
//!
//! [`VifDriver`] makes the vifs of a domain for the store's control loop. [`Connection`] is one connected vif and a port of the
//! bridge. The modules below it do no I/O: [`Tx`](tx::Tx) and [`Rx`](rx::Rx) are its two rings, [`assemble`] gathers
//! the slots of a packet, and [`handshake`] decides how both ends connect and disconnect.
//!
//! ```
//! use bridge::Bridge;
//! use event_channel::WaitEventChannels;
//! use grant_table::GrantTable;
//! use netback::{Attachment, Config, VifDriver};
//! use std::{os::fd::BorrowedFd, sync::Arc};
//! use xenstore::Client;
//!
//! /// Serves all vifs of this domain on one bridge, until `stop` becomes readable.
//! fn serve(
//!     grants: Arc<dyn GrantTable>,
//!     channels: Arc<dyn WaitEventChannels>,
//!     store: Client,
//!     bridge: Arc<Bridge>,
//!     stop: BorrowedFd<'_>,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let domid = grants.domid();
//!     let attach = move |_: &_, _: &_| Ok(Attachment::port_of(bridge.clone()));
//!     let mut driver = VifDriver::new(grants, channels, Config::default(), attach);
//!     Ok(xenbus::driver::run(store, domid, &mut driver, stop)?)
//! }
//! ```

pub mod assemble;
mod attachment;
mod config;
mod connection;
mod copy_batch;
mod device;
mod driver;
mod error;
mod followed;
pub mod handshake;
pub mod logged_ring;
mod offload;
mod ports;
mod response_logs;
pub mod rx;
mod stats;
pub mod tx;

pub use attachment::{Attachment, default_vif_name, vif_name};
pub use config::{Config, DataPath};
pub use connection::{Connection, OnExit};
pub use driver::{Resolver, VifDriver};
pub use error::{ExitReason, StartError};
pub use ports::{Ports, VifPort};
pub use stats::Stats;
