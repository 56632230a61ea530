//! The seam between drivers and a hypervisor, seen from one domain.
//!
//! [`Hypervisor`] is all that a driver may ask of the world: who we are; share, map, copy and transfer pages;
//! listen and connect event channels; talk to the store. Behind it stands one of two worlds, and only this crate
//! knows which: [`local`], where domains are processes or threads over sealed memfds and eventfds, and [`xen`], a
//! real host's device nodes. What both promise is written as tests in `tests/contract.rs`.

pub mod copy;
pub mod error;
pub mod flip;
pub mod inflight_dir;
pub mod local;
pub mod map;
pub mod share;
pub mod xen;

pub use copy::{CopyOp, CopyPtr, Transfer};
pub use error::{Error, Result};
pub use event_loop::Stream;
pub use flip::{Accept, Owned};
pub use inflight_dir::{InflightDir, InflightRegion};
pub use map::{Contiguous, Mapping};
pub use ring_abi::{DomId, EventPort, GrantRef, PAGE_SIZE};
pub use share::Shared;

use std::os::fd::AsFd;

/// What a grant allows its mapper, or a mapper asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// `GTF_readonly`, `GNTMAP_readonly`.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// One end of an interdomain event channel. Its descriptor is readable while an event is pending.
pub trait Channel: AsFd + Send + Sync {
    /// This end's number in this domain: what a frontend writes into `event-channel`.
    fn port(&self) -> EventPort;
    /// Sends an event to the other end. Events that were not taken yet merge: into one on `local`, into two on Xen,
    /// where those sent after the first was delivered come once more when it is taken.
    ///
    /// # Errors
    /// [`Error::Closed`] where the other end is gone.
    fn notify(&self) -> Result<()>;
    /// Takes the pending event and re-enables the next; `false` if there was none. Never blocks.
    ///
    /// # Errors
    /// [`Error::Closed`] once the other end is gone and nothing is pending; the descriptor is then readable too.
    fn take(&self) -> Result<bool>;
}

/// One hypervisor, seen from one domain; used as `Arc<dyn Hypervisor>` and called once a batch.
///
/// Every resource given out is a value: dropping it gives it back. All calls are thread-safe.
pub trait Hypervisor: Send + Sync {
    /// This domain's own number.
    fn domid(&self) -> DomId;

    /// Grants `pages` fresh pages to `peer`: zeroed, at consecutive addresses here, a reference for each.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the domain has no more pages or references for this peer.
    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared>;

    /// Maps pages that `peer` granted to us, in the order of `refs`: all of them or none. The pages need not lie
    /// at consecutive addresses. On `local` this costs no system call and no allocation up to
    /// [`map::INLINE_PAGES`] pages.
    ///
    /// # Errors
    /// [`Error::Grant`] names the first reference that was refused and why.
    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping>;

    /// Whether every [`Hypervisor::map`] costs system calls: then what is looked at once is better copied, a whole
    /// batch of it by one call.
    fn map_is_expensive(&self) -> bool {
        false
    }

    /// As [`Hypervisor::map`], at consecutive addresses: for rings of several pages. May cost system calls.
    ///
    /// # Errors
    /// As [`Hypervisor::map`].
    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous>;

    /// Copies between granted pages, or between those and our own memory: `GNTTABOP_copy`. Every operation gets a
    /// status of its own and a failed one does not stop the others; no copy crosses a page of a grant.
    ///
    /// # Errors
    /// Only where the whole batch could not be tried.
    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()>;

    /// Gives pages to peers that accept them: `GNTTABOP_transfer`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this world's user space cannot transfer.
    fn transfer(&self, ops: &mut [Transfer]) -> Result<()> {
        let _ = ops;
        Err(Error::Unsupported("page transfer"))
    }

    /// Gives up at most `pages` unused pages for `peer` to flip with; says how many.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this world's user space cannot transfer.
    fn balloon_out(&self, peer: DomId, pages: usize) -> Result<usize> {
        let _ = (peer, pages);
        Err(Error::Unsupported("giving up pages"))
    }

    /// Takes back whatever was given up for `peer` and not transferred back; for after the peer's death. Says how
    /// many pages that were.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this world's user space cannot transfer.
    fn balloon_in(&self, peer: DomId) -> Result<usize> {
        let _ = peer;
        Err(Error::Unsupported("reclaiming pages"))
    }

    /// Takes over pages that `peer` gave up, at most `pages` and maybe none, onto the end of `into`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this world's user space cannot transfer.
    fn populate(&self, peer: DomId, pages: usize, into: &mut Vec<Owned>) -> Result<()> {
        let _ = (peer, pages, into);
        Err(Error::Unsupported("claiming pages"))
    }

    /// Entries that each accept a page from `peer`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this world's user space cannot transfer; [`Error::NoSpace`].
    fn accept_transfer(&self, peer: DomId, entries: usize) -> Result<Box<dyn Accept>> {
        let _ = (peer, entries);
        Err(Error::Unsupported("accepting pages"))
    }

    /// A new event channel that waits for `peer` to connect: `EVTCHNOP_alloc_unbound`.
    fn alloc_unbound(&self, peer: DomId) -> Result<Box<dyn Channel>>;

    /// Connects to `port`, on which `peer` listens for us: `EVTCHNOP_bind_interdomain`. Our end starts pending.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`] where nobody listens there for this domain.
    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<Box<dyn Channel>>;

    /// A connection to the store that speaks `xs_wire`, with this domain's rights.
    fn store(&self) -> Result<Box<dyn Stream>>;
}
