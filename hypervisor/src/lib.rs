//! The hypervisor as one domain sees it: the interface of all drivers, and its two implementations.
//!
//! [`Hypervisor`] is all that a driver needs of its platform: the domain's own number; sharing, mapping, copying and
//! transferring pages; event channels; a connection to the store. It is implemented twice: by [`local`], where
//! domains are processes or threads that share sealed memfds and pipes, and by [`xen`], over the device nodes of a
//! real Xen host. The tests in `tests/contract.rs` run against both.
//!
//! ```
//! use hypervisor::{Access, DomId, Hypervisor, local::Sandbox};
//!
//! let sandbox = Sandbox::new()?;
//! let guest = sandbox.join(DomId(1))?;
//! let dom0 = sandbox.join(DomId::DOM0)?;
//!
//! // A frontend grants a page; the backend maps it.
//! let shared = guest.share(DomId::DOM0, 1, Access::ReadWrite)?;
//! let mapping = dom0.map(DomId(1), shared.refs(), Access::ReadWrite)?;
//! mapping.slice(0, 0, 2).unwrap().copy_from(&b"ok"[..]);
//! let mut bytes = [0u8; 2];
//! shared.slice(0, 2).unwrap().copy_to(&mut bytes[..]);
//! assert_eq!(&bytes, b"ok");
//!
//! // An event channel between them.
//! let unbound = guest.alloc_unbound(DomId::DOM0)?;
//! let bound = dom0.bind_interdomain(DomId(1), unbound.port())?;
//! bound.notify()?;
//! assert!(unbound.take()?);
//!
//! drop(mapping);
//! shared.end()?;
//! # Ok::<(), hypervisor::Error>(())
//! ```

pub mod copy;
pub mod error;
pub mod flip;
pub mod local;
pub mod map;
mod mask;
pub mod share;
pub mod xen;

pub use copy::{CopyOp, CopyPtr, TransferOp};
pub use error::{Error, Result};
pub use event_loop::Stream;
pub use flip::{AcceptTransfer, OwnedPage};
pub use map::{Contiguous, Mapping};
pub use ring_abi::{DomId, EventPort, GrantRef, PAGE_SIZE};
pub use share::Shared;

use std::os::fd::AsFd;

/// What a grant permits, or a mapping requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// `GTF_readonly`, `GNTMAP_readonly`.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// One end of an interdomain event channel. Its descriptor is readable while an event is pending.
pub trait Channel: AsFd + Send + Sync {
    /// This end's local port, which a frontend writes into `event-channel`.
    fn port(&self) -> EventPort;
    /// Sends an event to the other end. Events that were not taken yet merge: into one on `local`, into two on Xen,
    /// where an event sent after the first was delivered becomes pending when that one is taken.
    ///
    /// # Errors
    /// [`Error::Closed`] where the other end is closed (never on Xen).
    fn notify(&self) -> Result<()>;
    /// Takes the pending event and unmasks the channel; `false` if none was pending. Never blocks.
    ///
    /// # Errors
    /// [`Error::Closed`] once the other end is closed and nothing is pending; the descriptor is then readable too
    /// (never on Xen).
    fn take(&self) -> Result<bool>;
    /// Stops delivery to this end, against a peer that sends events without end. Until [`Channel::unmask`] at most one
    /// more event makes the descriptor readable; [`Channel::take`] then takes and remembers it, and returns `false`.
    fn mask(&self);
    /// Allows delivery again. Returns `true` if an event was remembered, for which the caller polls its ring; an
    /// implementation may instead deliver that event anew, and return `false`.
    ///
    /// # Errors
    /// [`Error::Io`] where a system call failed.
    fn unmask(&self) -> Result<bool>;
}

/// One hypervisor, seen from one domain; used as `Arc<dyn Hypervisor>` and called once a batch.
///
/// Every resource is a value: dropping it frees it. All calls are thread-safe.
pub trait Hypervisor: Send + Sync {
    /// This domain's number.
    fn domid(&self) -> DomId;

    /// Allocates `pages` zeroed pages at consecutive addresses and grants them to `peer`, each by its own reference.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the domain has no more pages or references for this peer.
    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared>;

    /// Maps pages that `peer` granted to this domain, in the order of `refs`: all of them or none. Their addresses
    /// need not be consecutive. On `local` this costs no system call and no allocation up to
    /// [`map::INLINE_PAGES`] pages.
    ///
    /// # Errors
    /// [`Error::Grant`] with the first reference that was refused; [`Error::NoSuchDomain`].
    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping>;

    /// Whether every [`Hypervisor::map`] costs system calls: then data that is read once is better copied, a whole
    /// batch by one call.
    fn map_is_expensive(&self) -> bool {
        false
    }

    /// Maps pages as [`Hypervisor::map`] does, but at consecutive addresses: for rings of several pages. May cost
    /// system calls.
    ///
    /// # Errors
    /// As [`Hypervisor::map`].
    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous>;

    /// Copies between granted pages, or between those and this process's memory: `GNTTABOP_copy`. Every operation
    /// gets a status of its own and a failed one does not stop the others; no copy crosses a page of a grant.
    ///
    /// # Errors
    /// [`Error::Io`] where the batch as a whole was not tried; no status is valid then.
    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()>;

    /// Transfers pages to peers whose entries accept them: `GNTTABOP_transfer`. Every operation gets a status.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where user space cannot transfer pages.
    fn transfer(&self, ops: &mut [TransferOp]) -> Result<()> {
        let _ = ops;
        Err(Error::Unsupported("transfer"))
    }

    /// Gives up at most `pages` unused pages for `peer` to take over, as XENMEM_decrease_reservation; returns how
    /// many.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where user space cannot transfer pages.
    fn balloon_out(&self, peer: DomId, pages: usize) -> Result<usize> {
        let _ = (peer, pages);
        Err(Error::Unsupported("balloon_out"))
    }

    /// Takes back all pages that were given up for `peer` and not transferred back; for use after the peer has
    /// exited. Returns how many.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where user space cannot transfer pages.
    fn balloon_in(&self, peer: DomId) -> Result<usize> {
        let _ = peer;
        Err(Error::Unsupported("balloon_in"))
    }

    /// Takes over pages that `peer` gave up, as XENMEM_increase_reservation: appends at most `pages`, possibly none,
    /// to
    /// `into`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where user space cannot transfer pages.
    fn populate(&self, peer: DomId, pages: usize, into: &mut Vec<OwnedPage>) -> Result<()> {
        let _ = (peer, pages, into);
        Err(Error::Unsupported("populate"))
    }

    /// Allocates grant entries that each accept a page from `peer` (`GTF_accept_transfer`).
    ///
    /// # Errors
    /// [`Error::Unsupported`] where user space cannot transfer pages; [`Error::NoSpace`] without enough
    /// references.
    fn accept_transfer(&self, peer: DomId, entries: usize) -> Result<Box<dyn AcceptTransfer>> {
        let _ = (peer, entries);
        Err(Error::Unsupported("accept_transfer"))
    }

    /// Allocates an event channel to which `peer` may bind: `EVTCHNOP_alloc_unbound`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without a free port; [`Error::NoSuchDomain`] on `local`.
    fn alloc_unbound(&self, peer: DomId) -> Result<Box<dyn Channel>>;

    /// Binds to `port`, which `peer` allocated for this domain: `EVTCHNOP_bind_interdomain`. The new end starts
    /// pending.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`] where `peer` has no such unbound port for this domain.
    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<Box<dyn Channel>>;

    /// Opens a connection to the store, in the protocol of `xs_wire`, with this domain's permissions.
    fn store(&self) -> Result<Box<dyn Stream>>;
}
