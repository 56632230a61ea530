//! Two hypervisors: [`local`], where domains are processes or threads that share sealed memfds and pipes, and [`xen`], over
//! the device nodes of a real Xen host.
//!
//! Both implement [`GrantTable`], [`WaitEventChannels`] and a [`Connector`] to the store, together [`Hypervisor`]. Drivers
//! are given these parts by their caller and do not know this crate. The tests in `tests/contract.rs` run against both.
//!
//! ```
//! use event_channel::{Channel, EventChannels};
//! use grant_table::{Access, GrantTable};
//! use hypervisor::local::Sandbox;
//! use ring_abi::DomId;
//!
//! let sandbox = Sandbox::new()?;
//! let guest = sandbox.join(DomId(1))?;
//! let dom0 = sandbox.join(DomId::DOM0)?;
//! let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
//! let mapping = dom0.map(DomId(1), shared.refs(), Access::ReadWrite)?;
//! mapping.slice(0, 0, 2).unwrap().copy_from(b"ok");
//! let unbound = guest.alloc_unbound(DomId::DOM0)?;
//! dom0.bind_interdomain(DomId(1), unbound.port())?.notify()?;
//! assert!(unbound.take()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod limits;
pub mod local;
mod mask;
pub mod xen;

pub use error::{Error, Result};
pub use limits::{max_mappings, raise_descriptor_limit};

use event_channel::WaitEventChannels;
use event_loop::Connector;
use grant_table::GrantTable;

/// All that a hypervisor gives to one domain, for a program that chooses one at run time: grants, event channels, and
/// connections to the store, in the protocol of `xs_wire` and with the domain's permissions.
pub trait Hypervisor: GrantTable + WaitEventChannels + Connector {}
impl<T: GrantTable + WaitEventChannels + Connector> Hypervisor for T {}
