//! The grant table of a domain: what a hypervisor implements.

use crate::map::{INLINE_PAGES, MapOp, Mappings};
use crate::{Access, Contiguous, CopyOp, Mapping, PageAcceptor, PageDonor, Result, Shared};
use alloc::sync::Arc;
use ring_abi::{DomId, GrantRef};
use smallvec::SmallVec;

/// A hypervisor's grant table, seen from one domain; used as `Arc<dyn GrantTable>` and called once a batch.
///
/// Every resource is a value: dropping it frees it. All calls are thread-safe.
pub trait GrantTable: Send + Sync {
    /// This domain's number.
    fn domid(&self) -> DomId;

    /// Allocates `pages` zeroed pages at consecutive addresses and grants them to `peer`, each by its own reference.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace) when the domain has no more pages or references for this peer.
    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared>;

    /// Maps pages that `peer` granted to this domain, in the order of `refs`: all of them or none. Their addresses
    /// need not be consecutive. On `local` this costs no system call and no allocation up to
    /// [`INLINE_PAGES`](crate::map::INLINE_PAGES) pages; on Xen four system calls, with the unmap.
    ///
    /// # Errors
    /// [`Error::Grant`](crate::Error::Grant) with the first reference that was refused;
    /// [`Error::NoSuchDomain`](crate::Error::NoSuchDomain).
    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping>;

    /// Maps the pages of several mappings: of each mapping all or none. The `ops` of one mapping follow each other. A
    /// mapping of which a page is refused is left empty. One call on `local`; through Linux's gntdev each mapping is made
    /// for itself, and costs what [`GrantTable::map`] does.
    ///
    /// # Errors
    /// The first error, as of [`GrantTable::map`]; it does not stop the other mappings.
    fn map_batch(&self, peer: DomId, ops: &[MapOp], mappings: &mut dyn Mappings) -> Result<()> {
        let mut outcome = Ok(());
        for of_one in ops.chunk_by(|a, b| a.mapping == b.mapping) {
            let refs: SmallVec<[GrantRef; INLINE_PAGES]> = of_one.iter().map(|op| op.gref).collect();
            let mapping = mappings.mapping(of_one[0].mapping);
            mapping.unmap();
            match self.map(peer, &refs, of_one[0].access) {
                Ok(mapped) => *mapping = mapped,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Unmaps the mappings of these numbers, which have pages of `peer`: in one call, or each, as [`GrantTable::map_batch`].
    fn unmap_batch(&self, peer: DomId, numbers: &[u32], mappings: &mut dyn Mappings) {
        let _ = peer;
        numbers.iter().for_each(|number| mappings.mapping(*number).unmap());
    }

    /// Maps pages as [`GrantTable::map`] does, but at consecutive addresses: for rings of several pages. May cost
    /// system calls.
    ///
    /// # Errors
    /// As [`GrantTable::map`].
    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous>;

    /// Whether mapped pages may be given to the kernel for I/O that goes on after this process was killed (`O_DIRECT` with io_uring). Not
    /// in a PV domain of Xen: gntdev of Linux cannot unmap a page that the kernel's I/O has pinned, tears the process down around
    /// it, and drops a reference too many of the page (`__unmap_grant_pages` in drivers/xen/gntdev.c, Linux 5.19 and later).
    fn maps_for_io(&self) -> bool {
        true
    }

    /// Copies between granted pages, or between those and this process's memory: `GNTTABOP_copy`. Every operation
    /// gets a status of its own and a failed one does not stop the others; no copy crosses a page of a grant.
    ///
    /// # Errors
    /// [`Error::Hypervisor`](crate::Error::Hypervisor) where the batch as a whole was not tried; no status is valid
    /// then.
    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()>;

    /// Another grant table of this domain for one device, where the hypervisor searches all mappings of one (Linux's gntdev a list
    /// of them at each map and unmap): what one device has mapped then costs the others nothing. `None` where it costs nothing anyway.
    ///
    /// # Errors
    /// [`Error::Hypervisor`](crate::Error::Hypervisor) where there are no more of them.
    fn for_device(&self) -> Result<Option<Arc<dyn GrantTable>>> {
        Ok(None)
    }

    /// What transfers pages to other domains, of a hypervisor that lets a program do that: not Xen, where
    /// GNTTABOP_transfer is for the kernels of PV domains alone.
    fn page_donor(self: Arc<Self>) -> Option<Arc<dyn PageDonor>> {
        None
    }

    /// What accepts pages of other domains, where there is a [`GrantTable::page_donor`].
    fn page_acceptor(self: Arc<Self>) -> Option<Arc<dyn PageAcceptor>> {
        None
    }
}
