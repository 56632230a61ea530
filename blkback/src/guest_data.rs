// Not a core: does I/O or calls a hypervisor.

//! The data of requests: moved between the guest's pages and the disk in place, or through bounce buffers.
//!
//! In place there is no copy: the kernel reads and writes the guest's mapped pages. Where it cannot pin such pages
//! it fails with EFAULT, which the first request with data shows (the probe): from then on data is copied, and that
//! request is submitted again. Where the pages stay mapped and the kernel has registered memory of the backend, a
//! copy between the two is faster than pinning (`tests/xen/run grant-costs`).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use grant_table::persist::{LINUX_MAX, Page, PersistentCache};
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, Mapping};
use ring_abi::blkif::{MAX_SEGMENTS, SECTOR, Segment};
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use vm_memory::{MmapRegion, VolatileSlice};

use crate::check::Segments;
use crate::config::{DataPath, RingConfig};
use crate::disk_request::DiskRequest;
use crate::engine::{BouncePool, Buffer, Data, Engine, IoRequest, Operation, PageSegment};
use crate::stats::{ErrorKind, Stats};

/// Bytes of a private bounce buffer: the most that a request carries.
const BUFFER: usize = MAX_SEGMENTS * PAGE_SIZE;

/// Access to the data of one frontend's requests.
pub(crate) struct GuestData {
    grants: Arc<dyn GrantTable>,
    peer: DomId,
    /// Pages that stay mapped.
    cache: Option<PersistentCache>,
    /// All data is copied.
    copies: bool,
    /// Registered bounce buffers, which are used first.
    pool: Option<Arc<BouncePool>>,
    /// Free private bounce buffers, for when the pool is exhausted.
    free: Vec<MmapRegion>,
    /// By tag: the guest's pages that a bounce buffer stands for.
    bounced: Box<[Option<Bounced>]>,
    /// Requests submitted in place, by tag, until one has shown that the kernel can pin the pages.
    probe: Option<HashMap<u64, DiskRequest>>,
    stats: Arc<Stats>,
}

struct Bounced {
    segments: Segments,
    /// The mapped pages, if they stay mapped.
    pages: SmallVec<[Page; MAX_SEGMENTS]>,
}

/// What to do about an operation that the engine handed back.
pub(crate) enum Outcome {
    /// Complete the request with this result.
    Done(Result<(), (ErrorKind, io::Error)>),
    /// Start the request once more.
    Retry(DiskRequest),
}

impl GuestData {
    /// Access to the data of the frontend in `config`, for `depth` requests at once of this engine.
    pub(crate) fn new(config: &RingConfig, depth: usize, engine: &mut dyn Engine) -> GuestData {
        let grants = config.grants.clone();
        let peer = config.peer;
        let data_path = config.tuning.data_path;
        let persistent = data_path == DataPath::Persistent && config.negotiated.persistent;
        let copies = data_path == DataPath::Copy;
        let pool = if copies || persistent { registered_pool(engine) } else { None };
        tracing::info!(persistent, copies, registered = pool.is_some(), "data path");
        GuestData {
            cache: persistent.then(|| PersistentCache::new(grants.clone(), peer, LINUX_MAX)),
            grants,
            peer,
            copies,
            pool,
            free: Vec::new(),
            bounced: (0..depth).map(|_| None).collect(),
            probe: (!copies).then(HashMap::new),
            stats: config.stats.clone(),
        }
    }

    /// Sets `io` up for the request; `false` if its pages cannot be mapped or copied, which fails this request alone.
    #[inline]
    pub(crate) fn start(&mut self, request: &DiskRequest, io: &mut IoRequest) -> bool {
        let started = match self.buffer(request) {
            Ok(Some(buffer)) => self.bounce(request, io, buffer),
            Ok(None) => self.in_place(request, io),
            Err(error) => Err(error),
        };
        started
            .inspect_err(|error| tracing::debug!(%error, "failed to access a request's pages"))
            .unwrap_or(false)
    }

    /// The bounce buffer for a request's data, if it is to be copied.
    #[inline]
    fn buffer(&mut self, request: &DiskRequest) -> grant_table::Result<Option<Buffer>> {
        if let Some(buffer) = self.pool.as_ref().and_then(|pool| pool.alloc(bytes(&request.segments))) {
            return Ok(Some(Buffer::Pooled(buffer)));
        }
        if !self.copies {
            return Ok(None);
        }
        let region = match self.free.pop() {
            Some(region) => region,
            None => MmapRegion::new(BUFFER)
                .map_err(|_| grant_table::Error::NoSpace("memory for a bounce buffer"))?,
        };
        Ok(Some(Buffer::Private(region)))
    }

    /// Frees a bounce buffer.
    #[inline]
    fn release(&mut self, buffer: Buffer) {
        if let Buffer::Private(region) = buffer {
            self.free.push(region);
        }
    }

    #[inline]
    fn in_place(&mut self, request: &DiskRequest, io: &mut IoRequest) -> grant_table::Result<bool> {
        let data = match &mut self.cache {
            Some(cache) => Data::Persistent(cached(cache, &request.segments, &self.stats)?),
            None => Data::Mapped(self.map(request)?),
        };
        let segments = (0..).zip(&request.segments).map(|(page, segment)| {
            let (offset, len) = byte_range(segment);
            PageSegment { page, offset, len }
        });
        if let Some(probe) = &mut self.probe {
            probe.insert(request.tag.0.into(), request.clone());
        }
        Ok(io.set_guest_pages(request.tag.0.into(), request.operation, request.sector, data, segments))
    }

    #[inline]
    fn map(&self, request: &DiskRequest) -> grant_table::Result<Mapping> {
        let refs: ArrayVec<GrantRef, MAX_SEGMENTS> = request.segments.iter().map(|s| s.gref).collect();
        // Reading the disk writes the guest's pages.
        let access = if request.operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly };
        // Counted by itself: taking the mapping out of the result would copy it.
        let mapping = self.grants.map(self.peer, &refs, access);
        if mapping.is_ok() {
            self.stats.pages.mapped.add(refs.len() as u64);
        }
        mapping
    }

    fn bounce(
        &mut self,
        request: &DiskRequest,
        io: &mut IoRequest,
        buffer: Buffer,
    ) -> grant_table::Result<bool> {
        let pages = match &mut self.cache {
            Some(cache) => cached(cache, &request.segments, &self.stats)?,
            None => SmallVec::new(),
        };
        let bounced = Bounced { segments: request.segments.clone(), pages };
        if request.operation == Operation::Write && !self.copy(&bounced, &buffer, Operation::Write)? {
            self.release(buffer);
            return Ok(false);
        }
        let len = bytes(&request.segments);
        io.set_bounced(request.tag.0.into(), request.operation, request.sector, buffer, len);
        self.bounced[request.tag.0 as usize] = Some(bounced);
        Ok(true)
    }

    /// Takes back an operation from the engine, and copies data read into a bounce buffer to the guest.
    #[inline]
    pub(crate) fn complete(&mut self, io: &mut IoRequest, result: io::Result<()>) -> Outcome {
        if self.probe.is_some() && io.is_guest_memory() {
            return self.complete_probe(io, result);
        }
        let result = result.map_err(|error| (ErrorKind::Io, error));
        let Some(buffer) = io.take_bounce_buffer() else { return Outcome::Done(result) };
        let bounced = self.bounced[io.tag as usize].take();
        let copied = match (bounced, io.operation) {
            (Some(bounced), Operation::Read) if result.is_ok() => {
                self.copy(&bounced, &buffer, Operation::Read)
            }
            _ => Ok(true),
        };
        self.release(buffer);
        Outcome::Done(result.and_then(|()| match copied {
            Ok(true) => Ok(()),
            Ok(false) => Err((ErrorKind::Grant, io::ErrorKind::PermissionDenied.into())),
            Err(error) => Err((ErrorKind::Grant, io::Error::other(error))),
        }))
    }

    #[cold]
    fn complete_probe(&mut self, io: &mut IoRequest, result: io::Result<()>) -> Outcome {
        let request = self.probe.as_mut().and_then(|probe| probe.remove(&io.tag));
        match (&result, request) {
            (Ok(()), _) if !self.copies => {
                tracing::info!("the kernel pins the guest's pages: reading and writing them in place");
                self.probe = None;
            }
            (Err(error), Some(request)) if error.raw_os_error() == Some(libc::EFAULT) => {
                if !self.copies {
                    tracing::info!("the kernel cannot pin the guest's pages: copying");
                    self.copies = true;
                }
                io.clear();
                return Outcome::Retry(request);
            }
            _ => {}
        }
        Outcome::Done(result.map_err(|error| (ErrorKind::Io, error)))
    }

    /// Copies between a bounce buffer and the guest's pages: to the pages for a read. `false` if a grant is refused.
    fn copy(&self, of: &Bounced, buffer: &Buffer, operation: Operation) -> grant_table::Result<bool> {
        let mut copied = 0;
        let mut ops: ArrayVec<CopyOp<'_>, MAX_SEGMENTS> = ArrayVec::new();
        for (number, segment) in of.segments.iter().enumerate() {
            let (offset, len) = byte_range(segment);
            let Some(local) = buffer.slice(copied, len.into()) else { return Ok(false) };
            copied += usize::from(len);
            let guest = match of.pages.get(number) {
                Some(page) => page.slice(0, offset.into(), len.into()).map(CopyPtr::Memory),
                None => Some(CopyPtr::Grant { domid: self.peer, gref: segment.gref, offset }),
            };
            let Some(guest) = guest else { return Ok(false) };
            ops.push(copy_op(operation, guest, local, len));
        }
        self.grants.copy(&mut ops)?;
        if of.pages.is_empty() {
            self.stats.pages.copied.add(ops.len() as u64);
        }
        Ok(ops.iter().all(|op| op.status.is_okay()))
    }
}

/// A bounce pool, if the engine has use for its being registered.
fn registered_pool(engine: &mut dyn Engine) -> Option<Arc<BouncePool>> {
    BouncePool::new().ok().filter(|pool| engine.register(pool))
}

fn copy_op<'a>(operation: Operation, guest: CopyPtr<'a>, local: VolatileSlice<'a>, len: u16) -> CopyOp<'a> {
    match operation {
        Operation::Read => CopyOp::new(CopyPtr::Memory(local.into()), guest, len),
        _ => CopyOp::new(guest, CopyPtr::Memory(local.into()), len),
    }
}

/// The segments' pages, which stay mapped.
#[inline]
fn cached(
    cache: &mut PersistentCache,
    segments: &Segments,
    stats: &Stats,
) -> grant_table::Result<SmallVec<[Page; MAX_SEGMENTS]>> {
    let hits = cache.counts().hits;
    let pages: SmallVec<_> =
        segments.iter().map(|segment| cache.get(segment.gref)).collect::<Result<_, _>>()?;
    let reused = cache.counts().hits - hits;
    stats.pages.reused.add(reused);
    stats.pages.mapped.add(segments.len() as u64 - reused);
    Ok(pages)
}

/// Length of all segments in bytes.
#[inline]
fn bytes(segments: &Segments) -> usize {
    segments.iter().map(|segment| usize::from(byte_range(segment).1)).sum()
}

/// A segment's first byte in its page, and its length in bytes.
#[inline]
fn byte_range(segment: &Segment) -> (u16, u16) {
    let sectors = u16::from(segment.last_sect - segment.first_sect) + 1;
    (u16::from(segment.first_sect) * SECTOR as u16, sectors * SECTOR as u16)
}
