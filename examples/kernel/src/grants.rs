//! A toy grant table: every domain is in this address space, so that mapping a page is giving its address.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr::NonNull;
use grant_table::map::{Page, Unmap};
use grant_table::{
    Access, Contiguous, CopyOp, CopyPtr, EndAccess, Error, GrantTable, Mapping, Result, Shared, SharedSlice,
};
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use spin::Mutex;

/// The grant tables of all domains, seen from one.
pub(crate) struct Grants {
    domid: DomId,
    entries: Arc<Entries>,
}

/// All entries, by reference.
#[derive(Default)]
struct Entries(Mutex<Vec<Option<Entry>>>);

/// A granted page.
#[derive(Clone, Copy)]
struct Entry {
    owner: DomId,
    peer: DomId,
    access: Access,
    page: NonNull<u8>,
    /// How often the peer has it mapped.
    mapped: u32,
}

// SAFETY: the address is of memory that any thread may access.
unsafe impl Send for Entry {}

impl Grants {
    pub(crate) fn new(domid: DomId) -> Self {
        Self { domid, entries: Arc::default() }
    }

    /// The same tables, seen from another domain.
    pub(crate) fn of(&self, domid: DomId) -> Self {
        Self { domid, entries: self.entries.clone() }
    }

    /// The entry by which `owner` grants this domain a page, if the access is permitted.
    fn permitted<'a>(
        &self,
        entries: &'a mut [Option<Entry>],
        owner: DomId,
        gref: GrantRef,
        access: Access,
    ) -> core::result::Result<&'a mut Entry, Status> {
        let entry = entries.get_mut(gref.0 as usize).and_then(Option::as_mut).ok_or(Status::BAD_GNTREF)?;
        let is_permitted = entry.owner == owner
            && entry.peer == self.domid
            && (access == Access::ReadOnly || entry.access == Access::ReadWrite);
        if is_permitted { Ok(entry) } else { Err(Status::PERMISSION_DENIED) }
    }

    /// The memory of one end of a copy.
    fn resolve<'a>(
        &self,
        end: CopyPtr<'a>,
        len: u16,
        access: Access,
    ) -> core::result::Result<SharedSlice<'a>, Status> {
        let (slice, offset) = match end {
            CopyPtr::Memory(slice) => (slice, 0),
            CopyPtr::Grant { domid, gref, offset } => {
                let mut entries = self.entries.0.lock();
                let page = self.permitted(&mut entries, domid, gref, access)?.page;
                // SAFETY: a page that its owner does not free while this call runs, as all runs on one processor.
                (unsafe { SharedSlice::new(page.as_ptr(), PAGE_SIZE) }, offset.into())
            }
        };
        slice.subslice(offset, len.into()).ok_or(Status::BAD_COPY_ARG)
    }

    fn copy_one(&self, op: &CopyOp<'_>) -> core::result::Result<(), Status> {
        let source = self.resolve(op.source, op.len, Access::ReadOnly)?;
        let dest = self.resolve(op.dest, op.len, Access::ReadWrite)?;
        let mut bytes = [0; PAGE_SIZE];
        let bytes = bytes.get_mut(..op.len.into()).ok_or(Status::BAD_COPY_ARG)?;
        source.copy_to(bytes);
        dest.copy_from(bytes);
        Ok(())
    }
}

impl GrantTable for Grants {
    fn domid(&self) -> DomId {
        self.domid
    }

    fn share(&self, peer: DomId, pages: usize, access: Access) -> Result<Shared> {
        let layout = layout(pages)?;
        // SAFETY: not of size 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Error::NoSpace("memory"))?;
        let mut entries = self.entries.0.lock();
        let first = entries.len() as u32;
        entries.extend((0..pages).map(|page| {
            // SAFETY: inside the pages just allocated.
            let page = unsafe { base.add(page * PAGE_SIZE) };
            Some(Entry { owner: self.domid, peer, access, page, mapped: 0 })
        }));
        let refs: Box<[GrantRef]> = (first..entries.len() as u32).map(GrantRef).collect();
        let granted = Granted { entries: self.entries.clone(), refs: refs.clone(), peer, base, layout };
        // SAFETY: zeroed consecutive pages, which only `granted` frees.
        Ok(unsafe { Shared::new(base, refs, access, Box::new(granted)) })
    }

    fn map(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping> {
        let mut entries = self.entries.0.lock();
        for &gref in refs {
            self.permitted(&mut entries, peer, gref, access).map_err(|status| Error::Grant {
                peer,
                gref,
                status,
            })?;
        }
        let map = |gref: &GrantRef| {
            let entry = entries.get_mut(gref.0 as usize)?.as_mut()?;
            entry.mapped += 1;
            Some(Page { base: entry.page, token: gref.0.into() })
        };
        let pages = refs.iter().filter_map(map).collect();
        // SAFETY: pages that are not freed while they are mapped.
        Ok(unsafe { Mapping::new(pages, access, self.entries.clone()) })
    }

    fn map_contiguous(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Contiguous> {
        Contiguous::new(self.map(peer, refs, access)?).ok_or(Error::NoSpace("consecutive addresses"))
    }

    fn copy(&self, ops: &mut [CopyOp<'_>]) -> Result<()> {
        for op in ops {
            op.status = self.copy_one(op).err().unwrap_or(Status::OKAY);
        }
        Ok(())
    }
}

impl Unmap for Entries {
    fn unmap(&self, pages: &[Page], _access: Access) {
        let mut entries = self.0.lock();
        for page in pages {
            if let Some(Some(entry)) = entries.get_mut(page.token as usize) {
                entry.mapped -= 1;
            }
        }
    }
}

/// The pages of a [`Shared`].
struct Granted {
    entries: Arc<Entries>,
    refs: Box<[GrantRef]>,
    peer: DomId,
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the address is of memory that any thread may access.
unsafe impl Send for Granted {}
// SAFETY: as above; nothing is changed through `&Granted`.
unsafe impl Sync for Granted {}

impl EndAccess for Granted {
    /// Pages that are still mapped are never freed.
    fn end_access(&mut self) -> Result<()> {
        let mut entries = self.entries.0.lock();
        let entry = |gref: &&GrantRef| entries[gref.0 as usize].is_some_and(|entry| entry.mapped > 0);
        if let Some(&gref) = self.refs.iter().find(entry) {
            return Err(Error::Grant { peer: self.peer, gref, status: Status::EAGAIN });
        }
        self.refs.iter().for_each(|gref| entries[gref.0 as usize] = None);
        // SAFETY: allocated with this layout, and neither granted nor mapped any more.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
        Ok(())
    }
}

fn layout(pages: usize) -> Result<Layout> {
    let bytes = pages.checked_mul(PAGE_SIZE).filter(|bytes| *bytes > 0);
    bytes.and_then(|bytes| Layout::from_size_align(bytes, PAGE_SIZE).ok()).ok_or(Error::NoSpace("memory"))
}
