// Not a core: does I/O or calls a hypervisor.

//! The data of requests: moved between the guest's pages and the disk in place, or through bounce buffers; by batches,
//! which the hypervisor is given in one call: all copies, and where it can (not by Linux's gntdev) all mappings.
//!
//! In place there is no copy: the kernel reads and writes the guest's mapped pages. Where it cannot pin such pages
//! it fails with EFAULT: from the first such request on data is copied, and that request is submitted again. Where the
//! pages stay mapped, bytes are copied between them and memory of the backend: if the kernel has that registered, this is faster than
//! pinning (`tests/xen/run grant-costs`), and a kernel that must not have such pages when the process is killed
//! ([`GrantTable::maps_for_io`]) never has one.

mod large_buffers;
mod memory;

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use grant_table::persist::{LINUX_MAX, PersistentCache};
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, MapOp};
use ring_abi::blkif::{MAX_SEGMENTS, Segment};
use ring_abi::{DomId, PAGE_SIZE};
use vm_memory::MmapRegion;

use crate::config::{DataPath, RingConfig};
use crate::engine::{BouncePool, Buffer, Completion, Engine, IoRequest, IoTable, Operation};
use crate::request::{PendingRequest, RequestTable, Tag};
use crate::stats::{ErrorKind, Stats};
use large_buffers::LargeBuffers;
use memory::{Memory, Pages};

/// Bytes of a private bounce buffer: the most that a request carries which is not indirect.
const BUFFER: usize = MAX_SEGMENTS * PAGE_SIZE;

/// Copies of one call of the hypervisor: as many as `hypervisor::xen` passes on without allocating.
pub(crate) const COPIES: usize = 32;

/// Access to the data of one frontend's requests.
pub(crate) struct GuestData {
    grants: Arc<dyn GrantTable>,
    peer: DomId,
    /// The operations of the engine, by tag, and their memory. Dropped after the engine.
    ios: IoTable<Memory>,
    /// Pages that stay mapped.
    cache: Option<PersistentCache>,
    /// All data is copied by the hypervisor.
    copies: bool,
    /// Registered bounce buffers, which are used first.
    pool: Option<Arc<BouncePool>>,
    /// Free private bounce buffers, for when the pool is exhausted.
    free: Vec<MmapRegion>,
    /// Those of requests that these are too small for.
    large: LargeBuffers,
    /// Requests that wait for one of those.
    waiting: Vec<Tag>,
    stats: Arc<Stats>,
    /// Pages to be mapped.
    to_map: Vec<MapOp>,
    /// Tags of mappings to be unmapped.
    to_unmap: Vec<u32>,
    /// Requests whose data is to be copied.
    to_copy: Vec<Tag>,
}

/// An operation that is complete, and its request's memory released.
pub(crate) struct Finished {
    pub(crate) tag: Tag,
    pub(crate) result: Result<(), (ErrorKind, io::Error)>,
}

impl GuestData {
    /// Access to the data of the frontend in `config`, for `depth` requests at once of this engine.
    pub(crate) fn new(config: &RingConfig, depth: usize, engine: &mut dyn Engine) -> GuestData {
        let grants = config.grants.clone();
        let peer = config.peer;
        let data_path = config.tuning.data_path;
        let persistent = data_path == DataPath::Persistent && config.persistent;
        let copies = !persistent && (data_path != DataPath::Map || !grants.maps_for_io());
        let pool = if copies || persistent { registered_pool(engine) } else { None };
        tracing::info!(persistent, copies, registered = pool.is_some(), "data path");
        GuestData {
            cache: persistent
                .then(|| PersistentCache::new(grants.clone(), peer, LINUX_MAX, config.page_budget.clone())),
            grants,
            peer,
            ios: IoTable::new(depth, Memory::empty),
            copies,
            pool,
            free: Vec::new(),
            large: LargeBuffers::default(),
            waiting: Vec::new(),
            stats: config.stats.clone(),
            to_map: Vec::new(),
            to_unmap: Vec::with_capacity(depth),
            to_copy: Vec::with_capacity(depth),
        }
    }

    /// Whether there are requests that wait until another one's memory is given back.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Appends those to `tags`, to be started.
    #[inline]
    pub(crate) fn take_waiting(&mut self, tags: &mut Vec<Tag>) {
        if self.has_waiting() {
            tags.append(&mut self.waiting);
        }
    }

    /// Gives back memory that large requests have used, none of which is in flight.
    pub(crate) fn give_back_spare(&mut self) {
        self.large.give_back_spare();
        if self.ios.pinned() == 0 {
            (0..self.ios.depth() as u32).for_each(|slot| self.ios.memory_mut(Tag(slot)).give_back_spare());
        }
    }

    /// Whether there are pages that stay mapped.
    pub(crate) fn keeps_pages(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| !cache.is_empty())
    }

    /// Unmaps those that no request has used since the call before.
    pub(crate) fn give_back_unused(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.give_back_unused();
        }
    }

    /// Operations that the engine has.
    #[inline]
    pub(crate) fn in_engine(&self) -> usize {
        self.ios.pinned()
    }

    /// Releases the memory of operations that the engine has dropped instead of handing them back, and appends their
    /// requests to `failed`.
    #[inline]
    pub(crate) fn reclaim(&mut self, failed: &mut Vec<Tag>) {
        self.ios.reclaim(failed);
        for tag in failed.iter() {
            self.release(*tag);
        }
        self.unmap_batch();
    }

    /// Makes the data of these requests accessible, and appends an operation for each to `ready`. Those whose pages
    /// cannot be mapped or copied, which fails them alone, are appended to `failed`. Some may wait: [`GuestData::has_waiting`].
    pub(crate) fn start(
        &mut self,
        requests: &RequestTable,
        tags: &[Tag],
        ready: &mut Vec<IoRequest>,
        failed: &mut Vec<Tag>,
    ) {
        let in_place = self.cache.is_none() && !self.copies;
        for tag in tags {
            let request = &requests[*tag];
            if in_place {
                self.add_to_map(*tag, request);
            } else if let Err(error) = self.prepare(*tag, request) {
                log_refusal(&error);
                self.ios.memory_mut(*tag).refused = true;
            }
        }
        self.map_batch();
        self.copy_batch(requests, Operation::Write);
        for tag in tags {
            let request = &requests[*tag];
            match self.ios.start(*tag, request.operation(), request.sector(), |m, s| m.collect(request, s)) {
                Some(io) => ready.push(io),
                None => self.give_up(*tag, failed),
            }
        }
        self.unmap_batch();
    }

    /// Releases the memory of a request that was not started: it has failed, or waits.
    #[cold]
    fn give_up(&mut self, tag: Tag, failed: &mut Vec<Tag>) {
        self.release(tag);
        let waits = std::mem::take(&mut self.ios.memory_mut(tag).waits);
        if waits { self.waiting.push(tag) } else { failed.push(tag) }
    }

    #[inline]
    fn add_to_map(&mut self, tag: Tag, request: &PendingRequest) {
        // Reading the disk writes the guest's pages.
        let access = match request.operation() {
            Operation::Read => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        for segment in request.segments() {
            self.to_map.push(MapOp { gref: segment.gref, mapping: tag.0, access });
        }
    }

    /// Finds the request's pages and a bounce buffer, and adds a write to the batch of what is to be copied.
    fn prepare(&mut self, tag: Tag, request: &PendingRequest) -> grant_table::Result<()> {
        let segments = request.segments();
        if segments.is_empty() {
            return Ok(());
        }
        let buffer = self.buffer(tag, request.bytes())?;
        let memory = self.ios.memory_mut(tag);
        memory.buffer = buffer;
        if memory.buffer.is_none() {
            return Ok(());
        }
        if let Some(cache) = &mut self.cache
            && !keep_mapped(cache, segments, &mut memory.pages, &self.stats)?
        {
            memory.pages.clear();
        }
        if request.operation() == Operation::Write {
            self.to_copy.push(tag);
        }
        Ok(())
    }

    /// A bounce buffer for so many bytes, a registered one if it is free. The request waits where there is none yet.
    #[inline]
    fn buffer(&mut self, tag: Tag, bytes: usize) -> grant_table::Result<Option<Buffer>> {
        if let Some(buffer) = self.pool.as_ref().and_then(|pool| pool.alloc(bytes)) {
            return Ok(Some(Buffer::Pooled(buffer)));
        }
        if bytes > BUFFER {
            return self.large_buffer(tag, bytes);
        }
        let region = match self.free.pop() {
            Some(region) => region,
            None => MmapRegion::new(BUFFER)
                .map_err(|_| grant_table::Error::NoSpace("memory for a bounce buffer"))?,
        };
        Ok(Some(Buffer::Private(region)))
    }

    #[cold]
    fn large_buffer(&mut self, tag: Tag, bytes: usize) -> grant_table::Result<Option<Buffer>> {
        let buffer = self.large.take(bytes)?;
        if buffer.is_none() {
            let memory = self.ios.memory_mut(tag);
            memory.refused = true;
            memory.waits = true;
        }
        Ok(buffer.map(Buffer::Private))
    }

    fn map_batch(&mut self) {
        if self.to_map.is_empty() {
            return;
        }
        let mapped = match self.grants.map_batch(self.peer, &self.to_map, &mut self.ios) {
            Ok(()) => self.to_map.len(),
            Err(error) => {
                log_refusal(&error);
                let ios = &self.ios;
                self.to_map.iter().filter(|op| ios.memory(Tag(op.mapping)).mapping.pages() > 0).count()
            }
        };
        self.stats.pages.mapped.add(mapped as u64);
        self.to_map.clear();
    }

    fn unmap_batch(&mut self) {
        if !self.to_unmap.is_empty() {
            self.grants.unmap_batch(self.peer, &self.to_unmap, &mut self.ios);
            self.to_unmap.clear();
        }
    }

    /// Takes operations back from the engine, copies data that was read into bounce buffers to the guest, and releases
    /// the requests' memory. Requests to be started once more are appended to `retries`.
    pub(crate) fn finish(
        &mut self,
        requests: &RequestTable,
        completions: &mut Vec<Completion>,
        finished: &mut Vec<Finished>,
        retries: &mut Vec<Tag>,
    ) {
        let mut any_bounced = false;
        for Completion { request, result } in completions.drain(..) {
            let operation = request.operation();
            let tag = self.ios.finish(request);
            if self.ios.memory(tag).buffer.is_some() {
                any_bounced = true;
                if operation == Operation::Read && result.is_ok() {
                    self.to_copy.push(tag);
                }
            } else {
                self.release(tag);
                if let Err(error) = &result
                    && matches!(operation, Operation::Read | Operation::Write)
                    && error.raw_os_error() == Some(libc::EFAULT)
                {
                    self.copy_from_now_on();
                    retries.push(tag);
                    continue;
                }
            }
            finished.push(Finished { tag, result: result.map_err(|error| (ErrorKind::Io, error)) });
        }
        if any_bounced {
            self.copy_batch(requests, Operation::Read);
            for Finished { tag, result } in finished.iter_mut() {
                // The others are released already.
                let is_bounced = self.ios.memory(*tag).buffer.is_some();
                if is_bounced && self.release(*tag) {
                    *result = Err((ErrorKind::Grant, io::ErrorKind::PermissionDenied.into()));
                }
            }
        }
        // Unmapped before the responses give the pages back to the frontend.
        self.unmap_batch();
    }

    /// The kernel cannot pin the guest's pages. No request comes here twice, as it has a bounce buffer then.
    #[cold]
    fn copy_from_now_on(&mut self) {
        if !self.copies {
            tracing::info!("the kernel cannot pin the guest's pages: copying");
            self.copies = true;
        }
    }

    /// Releases a request's memory; its mapping with the next batch. Returns whether it was refused.
    #[inline]
    fn release(&mut self, tag: Tag) -> bool {
        let memory = self.ios.memory_mut(tag);
        if memory.mapping.pages() > 0 {
            self.to_unmap.push(tag.0);
        }
        if memory.buffer.is_some() || !memory.pages.is_empty() {
            memory.pages.clear();
            match memory.buffer.take() {
                Some(Buffer::Private(region)) if region.size() > BUFFER => self.large.give_back(region),
                Some(Buffer::Private(region)) => self.free.push(region),
                _ => {}
            }
        }
        std::mem::take(&mut memory.refused)
    }

    /// Copies the data of a batch between bounce buffers and the guest's pages: to the pages for a read.
    fn copy_batch(&mut self, requests: &RequestTable, operation: Operation) {
        if self.to_copy.is_empty() {
            return;
        }
        let mut to_copy = std::mem::take(&mut self.to_copy);
        let mut refused = Vec::new();
        let mut ops: ArrayVec<CopyOp<'_>, COPIES> = ArrayVec::new();
        let mut owners: ArrayVec<Tag, COPIES> = ArrayVec::new();
        for tag in &to_copy {
            let memory = self.ios.memory(*tag);
            let mut copied = 0;
            for (number, segment) in requests[*tag].segments().iter().enumerate() {
                if ops.is_full() {
                    self.copy(&mut ops, &mut owners, &mut refused);
                }
                match memory.copy_op(self.peer, operation, (number, segment), copied) {
                    Some(op) => {
                        copied += usize::from(op.len);
                        ops.push(op);
                        owners.push(*tag);
                    }
                    None => refused.push(*tag),
                }
            }
        }
        self.copy(&mut ops, &mut owners, &mut refused);
        drop(ops);
        for tag in refused {
            self.ios.memory_mut(tag).refused = true;
        }
        to_copy.clear();
        self.to_copy = to_copy;
    }

    /// Copies, and appends the owners of what is refused to `refused`.
    fn copy(
        &self,
        ops: &mut ArrayVec<CopyOp<'_>, COPIES>,
        owners: &mut ArrayVec<Tag, COPIES>,
        refused: &mut Vec<Tag>,
    ) {
        let tried = self.grants.copy(ops).inspect_err(log_refusal).is_ok();
        let failed = |op: &CopyOp<'_>| !tried || !op.status.is_okay();
        let by_grant =
            |op: &CopyOp<'_>| [&op.source, &op.dest].iter().any(|end| matches!(end, CopyPtr::Grant { .. }));
        self.stats.pages.copied.add(ops.iter().filter(|op| !failed(op) && by_grant(op)).count() as u64);
        refused.extend(ops.iter().zip(&*owners).filter(|(op, _)| failed(op)).map(|(_, tag)| *tag));
        ops.clear();
        owners.clear();
    }
}

#[cold]
fn log_refusal(error: &grant_table::Error) {
    tracing::debug!(%error, "failed to access a request's pages");
}

/// A bounce pool, if the engine has use for its being registered.
fn registered_pool(engine: &mut dyn Engine) -> Option<Arc<BouncePool>> {
    BouncePool::new().ok().filter(|pool| engine.register(pool))
}

/// Appends the segments' pages, which stay mapped; `false` if one of them is not to be mapped.
#[inline]
fn keep_mapped(
    cache: &mut PersistentCache,
    segments: &[Segment],
    pages: &mut Pages,
    stats: &Stats,
) -> grant_table::Result<bool> {
    let before = cache.counts();
    let mut outcome = Ok(true);
    for segment in segments {
        match cache.get(segment.gref) {
            Ok(Some(page)) => pages.push(page),
            Ok(None) => outcome = Ok(false),
            Err(error) => outcome = Err(error),
        }
        if !matches!(outcome, Ok(true)) {
            break;
        }
    }
    let counts = cache.counts();
    stats.pages.reused.add(counts.hits - before.hits);
    stats.pages.mapped.add(counts.misses - before.misses);
    outcome
}
