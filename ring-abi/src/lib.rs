//! Xen's split-driver wire formats and shared descriptor rings, bit-exact and `no_std`.
//!
//! Two kinds of type live here. *Bytes* are `repr(C)` structures with a size assertion and a source in Xen's
//! public headers (`xen/include/public`); *meaning* is what a driver works with. [`ring`] joins them: a
//! [`ring::Protocol`] says how a slot's bytes become meaning, [`ring::Front`] and [`ring::Back`] move them.
#![no_std]

pub mod blkif;
pub mod console;
pub mod domain;
pub mod event;
pub mod grant;
pub mod netif;
pub mod ring;
pub mod shm;
pub mod stream;
pub mod sync;
#[cfg(all(feature = "testing", not(loom)))]
pub mod testing;
pub mod xenbus;
pub mod xs_wire;

pub use domain::DomId;
pub use event::EventPort;
pub use grant::GrantRef;

/// Bytes of a page, a grant and a ring page: `XC_PAGE_SIZE`, `XEN_PAGE_SIZE`.
pub const PAGE_SIZE: usize = 4096;
