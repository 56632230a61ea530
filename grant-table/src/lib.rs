//! Grant tables: the interface by which domains share, map and copy pages, and policies over it.
//!
//! [`GrantTable`] is what a hypervisor implements: the crate `hypervisor` has two implementations, and a kernel or unikernel
//! brings its own. Its resources are values, which give their pages back when they are dropped: [`Shared`], [`Mapping`] and
//! [`Contiguous`]. [`PageDonor`] and [`PageAcceptor`] transfer pages instead, where the hypervisor can. Over them a
//! backend keeps the pages of persistent grants mapped in a [`PersistentCache`], and flips pages with a [`flip::Sender`].
//!
//! ```
//! use grant_table::{Access, GrantTable};
//! use hypervisor::local::Sandbox;
//! use ring_abi::DomId;
//!
//! let sandbox = Sandbox::new()?;
//! let guest = sandbox.join(DomId(1))?;
//! let dom0 = sandbox.join(DomId::DOM0)?;
//!
//! // A frontend grants a page; the backend maps it.
//! let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
//! let mapping = dom0.map(DomId(1), shared.refs(), Access::ReadWrite)?;
//! mapping.slice(0, 0, 2).unwrap().copy_from(b"ok");
//! let mut bytes = [0u8; 2];
//! shared.slice(0, 2).unwrap().copy_to(&mut bytes);
//! assert_eq!(&bytes, b"ok");
//!
//! drop(mapping);
//! shared.end()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The crate needs an allocator and no std. The default feature `std` adds conversions between [`SharedSlice`] and
//! [`vm_memory::VolatileSlice`].
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod access;
mod copy;
mod error;
pub mod flip;
pub mod map;
pub mod persist;
mod share;
mod slice;
mod table;
mod transfer;

pub use access::Access;
pub use copy::{CopyOp, CopyPtr};
pub use error::{Error, Result};
pub use map::{Contiguous, MapOp, Mapping, Mappings};
pub use persist::{PageBudget, PersistentCache};
pub use share::{EndAccess, Shared};
pub use slice::SharedSlice;
pub use table::GrantTable;
pub use transfer::{AcceptTransfer, OwnedPage, PageAcceptor, PageDonor, PageOwner, TransferOp};
