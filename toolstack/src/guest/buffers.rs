//! How the pages that a guest may grant are shared out among its disks
//! (`docs/decisions/0009-each-disk-has-pages-of-its-own.md`).
//!
//! Each disk grants a share when it is opened, and keeps it: with the share its requests go on whatever others hold. What
//! it needs beyond it, it borrows from half of the guest's pages, which is common to all. The rest is left for shares, rings
//! and network interfaces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkfront::split::MAX_REQUEST_BYTES;
use blkfront::{Buffer, Disk, Error, Result};
use ring_abi::{DomId, PAGE_SIZE};

/// The most buffers of a disk's share: enough for 704 KiB in flight.
const MAX_SHARE: usize = 16;
/// A share has this part of the guest's pages at most, so that some thirty disks have room beside the common buffers.
const SHARES: usize = 64;
/// Pages of a buffer, which holds the longest request.
const BUFFER_PAGES: usize = MAX_REQUEST_BYTES.div_ceil(PAGE_SIZE);

/// The buffers that a guest's disks have in common.
#[derive(Debug)]
pub struct CommonBuffers {
    most: usize,
    /// Buffers of each disk's share.
    share: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Buffers that are granted: spare and lent ones.
    granted: usize,
    /// Spare buffers, by the domain that they are granted to.
    spare: BTreeMap<DomId, Vec<Buffer>>,
    /// Open disks, by their backend's domain.
    disks: BTreeMap<DomId, usize>,
}

impl CommonBuffers {
    /// Half of `pages`, the pages that the guest may grant.
    pub fn of_pages(pages: usize) -> Arc<CommonBuffers> {
        let share = (pages / SHARES / BUFFER_PAGES).clamp(1, MAX_SHARE);
        Arc::new(CommonBuffers { most: pages / 2 / BUFFER_PAGES, share, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a buffer; `None` if all are lent, or the domain can grant no more pages now.
    fn lend(&self, disk: &Disk) -> Result<Option<Buffer>> {
        let mut state = self.state();
        if let Some(buffer) = state.spare.get_mut(&disk.backend()).and_then(Vec::pop) {
            return Ok(Some(buffer));
        }
        if state.granted == self.most {
            return Ok(None);
        }
        match disk.buffer(MAX_REQUEST_BYTES) {
            Ok(buffer) => {
                state.granted += 1;
                Ok(Some(buffer))
            }
            Err(Error::Grant(grant_table::Error::NoSpace(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn give_back(&self, backend: DomId, buffer: Buffer) {
        self.state().spare.entry(backend).or_default().push(buffer);
    }

    fn opened(&self, backend: DomId) {
        *self.state().disks.entry(backend).or_default() += 1;
    }

    /// Forgets a disk with the buffers lent to it, which are dropped with its requests.
    fn closed(&self, backend: DomId, lent: usize) {
        let mut state = self.state();
        state.granted -= lent;
        let disks = state.disks.entry(backend).or_default();
        *disks -= 1;
        if *disks == 0 {
            state.disks.remove(&backend);
            let spare = state.spare.remove(&backend).unwrap_or_default();
            state.granted -= spare.len();
        }
    }
}

/// The buffers of one disk.
#[derive(Debug)]
pub struct DiskBuffers {
    common: Arc<CommonBuffers>,
    backend: DomId,
    /// Those of its share that are not in use.
    spare: Vec<Buffer>,
    borrowed: usize,
}

impl DiskBuffers {
    /// Grants the share of a disk.
    ///
    /// # Errors
    /// [`Error::Grant`] if the domain cannot grant as many pages.
    pub fn new(disk: &Disk, common: Arc<CommonBuffers>) -> Result<DiskBuffers> {
        let spare = (0..common.share).map(|_| disk.buffer(MAX_REQUEST_BYTES)).collect::<Result<_>>()?;
        let backend = disk.backend();
        common.opened(backend);
        Ok(DiskBuffers { common, backend, spare, borrowed: 0 })
    }

    /// Takes a buffer for the longest request; `None` if there is none now. The disk then has buffers in use, and the next
    /// one that is put back is there for it.
    ///
    /// # Errors
    /// [`Error::Grant`] if the hypervisor failed.
    pub fn take(&mut self, disk: &Disk) -> Result<Option<Buffer>> {
        if let Some(buffer) = self.spare.pop() {
            return Ok(Some(buffer));
        }
        let lent = self.common.lend(disk)?;
        self.borrowed += usize::from(lent.is_some());
        Ok(lent)
    }

    /// Puts a buffer back.
    pub fn put(&mut self, buffer: Buffer) {
        match self.borrowed {
            0 => self.spare.push(buffer),
            // Any buffer will do: the share stays complete.
            _ => {
                self.borrowed -= 1;
                self.common.give_back(self.backend, buffer);
            }
        }
    }
}

impl Drop for DiskBuffers {
    fn drop(&mut self) {
        self.common.closed(self.backend, self.borrowed);
    }
}
