//! How the pages that a guest may grant are shared out among its disks
//! (`docs/decisions/0009-each-disk-has-pages-of-its-own.md`).
//!
//! Each disk grants a share when it is opened, and keeps it: with the share its requests go on whatever others hold. What
//! it needs beyond it, it borrows from half of the guest's pages, which is common to all. The rest is left for shares, rings
//! and network interfaces.
//!
//! Of the common half a quarter is for large buffers, of which each carries what many of the others would. A disk uses them while there
//! are any, and does without them otherwise: nothing waits for one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkfront::split::MAX_REQUEST_BYTES;
use blkfront::{Buffer, Disk, Result};
use ring_abi::{DomId, PAGE_SIZE};

/// The most buffers of a disk's share: enough for 704 KiB in flight.
const MAX_SHARE: usize = 16;
/// A share has this part of the guest's pages at most, so that some thirty disks have room beside the common buffers.
const SHARES: usize = 64;
/// Pages of a buffer, which holds the longest request with segments of its own.
const BUFFER_PAGES: usize = MAX_REQUEST_BYTES.div_ceil(PAGE_SIZE);
/// Large buffers have this part of the guest's pages.
const LARGE_PART: usize = 8;
/// The lengths that large buffers may have: the first of which two fit into their part.
const LARGE_BYTES: [usize; 4] = [1 << 20, 512 << 10, 256 << 10, 128 << 10];

/// The buffers that a guest's disks have in common.
#[derive(Debug)]
pub struct CommonBuffers {
    most: usize,
    large: Large,
    /// Buffers of each disk's share.
    share: usize,
    state: Mutex<State>,
}

/// How many large buffers there may be, and of how many bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Large {
    bytes: usize,
    most: usize,
}

impl Large {
    /// Those of a guest that may grant so many pages.
    fn of_pages(pages: usize) -> Large {
        let fit = |bytes: usize| Large { bytes, most: pages / LARGE_PART / Large::pages(bytes) };
        LARGE_BYTES.map(fit).into_iter().find(|large| large.most >= 2).unwrap_or_default()
    }

    /// Pages of one, with that of its segments.
    fn pages(bytes: usize) -> usize {
        bytes.div_ceil(PAGE_SIZE) + 1
    }
}

#[derive(Debug, Default)]
struct State {
    /// Large buffers that are granted: spare and lent ones.
    large_granted: usize,
    /// Spare large buffers, by the domain that they are granted to.
    large_spare: BTreeMap<DomId, Vec<Buffer>>,
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
        let large = Large::of_pages(pages);
        let most = (pages / 2 - large.most * Large::pages(large.bytes)) / BUFFER_PAGES;
        Arc::new(CommonBuffers { most, large, share, state: Mutex::default() })
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
            Err(error) if error.is_out_of_pages() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lends a large buffer of so many bytes at least; `None` if there is none.
    fn lend_large(&self, disk: &Disk, bytes: usize) -> Result<Option<Buffer>> {
        let mut state = self.state();
        let spare = state.large_spare.entry(disk.backend()).or_default();
        if let Some(number) = spare.iter().position(|buffer| buffer.capacity() >= bytes) {
            return Ok(Some(spare.swap_remove(number)));
        }
        let size = self.large.bytes.min(disk.max_request_bytes());
        if state.large_granted == self.large.most || size < bytes {
            return Ok(None);
        }
        match disk.buffer(size) {
            Ok(buffer) => {
                state.large_granted += 1;
                Ok(Some(buffer))
            }
            Err(error) if error.is_out_of_pages() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn give_back(&self, backend: DomId, buffer: Buffer) {
        let mut state = self.state();
        let is_large = buffer.capacity() > MAX_REQUEST_BYTES;
        let spare = if is_large { &mut state.large_spare } else { &mut state.spare };
        spare.entry(backend).or_default().push(buffer);
    }

    fn opened(&self, backend: DomId) {
        *self.state().disks.entry(backend).or_default() += 1;
    }

    /// Forgets a disk with the buffers lent to it, which are dropped with its requests.
    fn closed(&self, backend: DomId, lent: usize, large_lent: usize) {
        let mut state = self.state();
        state.granted -= lent;
        state.large_granted -= large_lent;
        let disks = state.disks.entry(backend).or_default();
        *disks -= 1;
        if *disks == 0 {
            state.disks.remove(&backend);
            let spare = state.spare.remove(&backend).unwrap_or_default();
            state.granted -= spare.len();
            let spare = state.large_spare.remove(&backend).unwrap_or_default();
            state.large_granted -= spare.len();
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
    large_borrowed: usize,
}

impl DiskBuffers {
    /// Grants the share of a disk.
    ///
    /// # Errors
    /// [`blkfront::Error::Grant`] if the domain cannot grant as many pages.
    pub fn new(disk: &Disk, common: Arc<CommonBuffers>) -> Result<DiskBuffers> {
        let spare = (0..common.share).map(|_| disk.buffer(MAX_REQUEST_BYTES)).collect::<Result<_>>()?;
        let backend = disk.backend();
        common.opened(backend);
        Ok(DiskBuffers { common, backend, spare, borrowed: 0, large_borrowed: 0 })
    }

    /// The longest request that there are buffers for, and that the disk's backend supports.
    pub fn request_bytes(&self, disk: &Disk) -> usize {
        self.common.large.bytes.min(disk.max_request_bytes()).max(MAX_REQUEST_BYTES)
    }

    /// Takes a large buffer of so many bytes at least; `None` if there is none, and smaller requests are to be made.
    ///
    /// # Errors
    /// [`blkfront::Error::Grant`] if the hypervisor failed.
    pub fn take_large(&mut self, disk: &Disk, bytes: usize) -> Result<Option<Buffer>> {
        let lent = self.common.lend_large(disk, bytes)?;
        self.large_borrowed += usize::from(lent.is_some());
        Ok(lent)
    }

    /// Takes a buffer for [`MAX_REQUEST_BYTES`]; `None` if there is none now. The disk then has buffers in use, and the next
    /// one that is put back is there for it.
    ///
    /// # Errors
    /// [`blkfront::Error::Grant`] if the hypervisor failed.
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
        if buffer.capacity() > MAX_REQUEST_BYTES {
            self.large_borrowed -= 1;
            return self.common.give_back(self.backend, buffer);
        }
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
        self.common.closed(self.backend, self.borrowed, self.large_borrowed);
    }
}
