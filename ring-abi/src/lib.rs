//! Xen's split-driver wire formats and shared descriptor rings, bit-exact and `no_std`.
//!
//! Two kinds of type live here. *Bytes* are `repr(C)` structures with a size assertion and a source in Xen's
//! public headers (`xen/include/public`); *meaning* is what a driver works with. [`ring`] joins them: a
//! [`ring::Protocol`] says how a slot's bytes become meaning, [`ring::Front`] and [`ring::Back`] move them.
//!
//! A frontend for block devices sends a request, and sees the slot as the backend reads it:
//!
//! ```
//! use ring_abi::blkif::{Io, OP_WRITE, Request, Segment, X86_64};
//! use ring_abi::ring::{Back, Front};
//! use ring_abi::GrantRef;
//! # use ring_abi::testing::Pages;
//! # let granted = Pages::new(1);
//! # let mapped = granted.clone();
//!
//! // The same page: granted by the frontend, and mapped by the backend.
//! let mut front = Front::<X86_64, _>::init(granted)?;
//! let mut back = Back::<X86_64, _>::attach(mapped)?;
//!
//! // A page written to sectors 16 to 23.
//! let mut io = Io { id: 1, operation: OP_WRITE, sector_number: 16, nr_segments: 1, ..Io::EMPTY };
//! io.segments.push(Segment { gref: GrantRef(8), first_sect: 0, last_sect: 7 });
//! assert!(front.push(&Request::Io(io.clone())));
//! assert!(front.commit().wanted());
//! assert_eq!(back.pop()?, Some(Request::Io(io)));
//! assert_eq!(front.free(), 31);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
