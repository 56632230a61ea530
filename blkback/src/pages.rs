//! How a request's bytes get between the guest's pages and the disk: in place, or through pages of our own.
//!
//! In place there is no copy: the kernel reads and writes the guest's mapped pages. It refuses that with EFAULT
//! where it cannot take hold of such pages, which the first request to move anything shows: from then on bytes are
//! copied, and that request is done again. Where the pages stay mapped, and the kernel knows memory of ours for
//! good, a copy between the two is the cheaper way (`tests/xen/run grant-costs`).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use grant_table::persist::{Cache, LINUX_MAX, Page};
use hypervisor::{Access, CopyOp, CopyPtr, DomId, GrantRef, Hypervisor, Mapping, PAGE_SIZE};
use ring_abi::blkif::{MAX_SEGMENTS, SECTOR, Segment};
use smallvec::SmallVec;
use vm_memory::{MmapRegion, VolatileSlice};

use crate::check::Segments;
use crate::device::{DataPath, Setup};
use crate::engine::{Buffer, Data, Engine, Io, Op, Part, Slab};
use crate::queue::Task;

/// Bytes of a buffer: what a request can move.
const BUFFER: usize = MAX_SEGMENTS * PAGE_SIZE;

/// The pages of one frontend.
pub(crate) struct Pages {
    hv: Arc<dyn Hypervisor>,
    peer: DomId,
    /// Those that stay mapped.
    cache: Option<Cache>,
    /// Bytes are copied, whatever that costs.
    copies: bool,
    /// What bytes are copied to and from in the first place.
    slab: Option<Arc<Slab>>,
    /// Buffers that no request has, for when the slab has no room.
    pool: Vec<MmapRegion>,
    /// By job: whose pages a buffer stands for.
    bounced: Box<[Option<Bounced>]>,
    /// What is in flight in place, by job, while nothing has yet shown that the kernel can do that.
    trial: Option<HashMap<u64, Task>>,
}

struct Bounced {
    segments: Segments,
    /// Where they are mapped, if they stay so.
    pages: SmallVec<[Page; MAX_SEGMENTS]>,
}

/// How an operation that came back is to be taken.
pub(crate) enum Settled {
    /// It is over, with this result.
    Over(io::Result<()>),
    /// To be prepared and submitted once more.
    Again(Task),
}

impl Pages {
    /// Of the frontend in `setup`, for so many requests at once of this engine.
    pub(crate) fn new(setup: &Setup, depth: usize, engine: &mut dyn Engine) -> Pages {
        let (hv, peer, data_path) = (setup.hv.clone(), setup.peer, setup.tuning.data_path);
        let persistent = data_path == DataPath::Persistent && setup.transport.persistent;
        let copies = data_path == DataPath::Copy;
        let slab =
            (copies || persistent).then(|| Slab::new().ok().filter(|slab| engine.register(slab))).flatten();
        tracing::info!(%peer, persistent, copies, registered = slab.is_some(), "pages of a frontend");
        Pages {
            cache: persistent.then(|| Cache::new(hv.clone(), peer, LINUX_MAX)),
            hv,
            peer,
            copies,
            slab,
            pool: Vec::new(),
            bounced: (0..depth).map(|_| None).collect(),
            trial: (!copies).then(HashMap::new),
        }
    }

    /// Makes `io` what the task asks for; `false` where pages cannot be had, which is this request's error alone.
    #[inline]
    pub(crate) fn prepare(&mut self, task: &Task, io: &mut Io) -> bool {
        let prepared = match self.buffer(task) {
            Ok(Some(buffer)) => self.bounce(task, io, buffer),
            Ok(None) => self.in_place(task, io),
            Err(error) => Err(error),
        };
        prepared
            .inspect_err(
                |error| tracing::debug!(peer = %self.peer, %error, "a request's pages cannot be reached"),
            )
            .unwrap_or(false)
    }

    /// What the task's bytes are copied to or from, if they are.
    #[inline]
    fn buffer(&mut self, task: &Task) -> hypervisor::Result<Option<Buffer>> {
        if let Some(run) = self.slab.as_ref().and_then(|slab| slab.take(bytes(&task.segments))) {
            return Ok(Some(Buffer::Run(run)));
        }
        if !self.copies {
            return Ok(None);
        }
        let region = match self.pool.pop() {
            Some(region) => region,
            None => {
                MmapRegion::new(BUFFER).map_err(|e| hypervisor::Error::io("a buffer", io::Error::other(e)))?
            }
        };
        Ok(Some(Buffer::Region(region)))
    }

    /// A buffer that is needed no more.
    #[inline]
    fn give_back(&mut self, buffer: Buffer) {
        if let Buffer::Region(region) = buffer {
            self.pool.push(region);
        }
    }

    #[inline]
    fn in_place(&mut self, task: &Task, io: &mut Io) -> hypervisor::Result<bool> {
        let data = match &mut self.cache {
            Some(cache) => Data::Persistent(kept(cache, &task.segments)?),
            None => Data::Mapped(self.map(task)?),
        };
        let parts = (0..).zip(&task.segments).map(|(page, segment)| {
            let (offset, len) = extent(segment);
            Part { page, offset, len }
        });
        if let Some(trial) = &mut self.trial {
            trial.insert(task.job.0.into(), task.clone());
        }
        Ok(io.set_pages(task.job.0.into(), task.op, task.sector, data, parts))
    }

    #[inline]
    fn map(&self, task: &Task) -> hypervisor::Result<Mapping> {
        let refs: ArrayVec<GrantRef, MAX_SEGMENTS> = task.segments.iter().map(|s| s.gref).collect();
        // Reading the disk writes the guest's pages.
        let access = if task.op == Op::Read { Access::ReadWrite } else { Access::ReadOnly };
        self.hv.map(self.peer, &refs, access)
    }

    fn bounce(&mut self, task: &Task, io: &mut Io, buffer: Buffer) -> hypervisor::Result<bool> {
        let pages = match &mut self.cache {
            Some(cache) => kept(cache, &task.segments)?,
            None => SmallVec::new(),
        };
        let bounced = Bounced { segments: task.segments.clone(), pages };
        if task.op == Op::Write && !self.copy(&bounced, &buffer, Op::Write)? {
            self.give_back(buffer);
            return Ok(false);
        }
        io.set_bounced(task.job.0.into(), task.op, task.sector, buffer, bytes(&task.segments));
        self.bounced[task.job.0 as usize] = Some(bounced);
        Ok(true)
    }

    /// An operation came back: what was read gets to the guest.
    #[inline]
    pub(crate) fn settle(&mut self, io: &mut Io, result: io::Result<()>) -> Settled {
        if self.trial.is_some() && io.is_guests() {
            return self.try_out(io, result);
        }
        let Some(buffer) = io.take_bounced() else { return Settled::Over(result) };
        let bounced = self.bounced[io.tag as usize].take();
        let copied = match (bounced, io.op) {
            (Some(bounced), Op::Read) if result.is_ok() => self.copy(&bounced, &buffer, Op::Read),
            _ => Ok(true),
        };
        self.give_back(buffer);
        Settled::Over(result.and_then(|()| match copied {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::PermissionDenied.into()),
            Err(error) => Err(io::Error::other(error)),
        }))
    }

    #[cold]
    fn try_out(&mut self, io: &mut Io, result: io::Result<()>) -> Settled {
        let task = self.trial.as_mut().and_then(|trial| trial.remove(&io.tag));
        match (&result, task) {
            (Ok(()), _) if !self.copies => {
                tracing::info!(peer = %self.peer, "the kernel reads and writes the guest's pages in place");
                self.trial = None;
            }
            (Err(error), Some(task)) if error.raw_os_error() == Some(libc::EFAULT) => {
                if !self.copies {
                    tracing::info!(peer = %self.peer, "the kernel cannot data_path the guest's pages: copying");
                    self.copies = true;
                }
                io.clear();
                return Settled::Again(task);
            }
            _ => {}
        }
        Settled::Over(result)
    }

    /// Copies between a buffer and the guest's pages: into them for a read. `false` where a grant was refused.
    fn copy(&self, of: &Bounced, buffer: &Buffer, op: Op) -> hypervisor::Result<bool> {
        let mut at = 0;
        let mut ops: ArrayVec<CopyOp<'_>, MAX_SEGMENTS> = ArrayVec::new();
        for (number, segment) in of.segments.iter().enumerate() {
            let (offset, len) = extent(segment);
            let Some(ours) = buffer.slice(at, len.into()) else { return Ok(false) };
            at += usize::from(len);
            let theirs = match of.pages.get(number) {
                Some(page) => page.slice(0, offset.into(), len.into()).map(CopyPtr::Memory),
                None => Some(CopyPtr::Grant { domid: self.peer, gref: segment.gref, offset }),
            };
            let Some(theirs) = theirs else { return Ok(false) };
            ops.push(directed(op, theirs, ours, len));
        }
        self.hv.copy(&mut ops)?;
        Ok(ops.iter().all(|op| op.status.is_okay()))
    }
}

fn directed<'a>(op: Op, theirs: CopyPtr<'a>, ours: VolatileSlice<'a>, len: u16) -> CopyOp<'a> {
    match op {
        Op::Read => CopyOp::new(CopyPtr::Memory(ours), theirs, len),
        _ => CopyOp::new(theirs, CopyPtr::Memory(ours), len),
    }
}

#[inline]
fn kept(cache: &mut Cache, segments: &Segments) -> hypervisor::Result<SmallVec<[Page; MAX_SEGMENTS]>> {
    segments.iter().map(|segment| cache.get(segment.gref)).collect()
}

/// Bytes of all segments.
#[inline]
fn bytes(segments: &Segments) -> usize {
    segments.iter().map(|segment| usize::from(extent(segment).1)).sum()
}

/// First byte of a segment in its page, and bytes.
#[inline]
fn extent(segment: &Segment) -> (u16, u16) {
    let sectors = u16::from(segment.last_sect - segment.first_sect) + 1;
    (u16::from(segment.first_sect) * SECTOR as u16, sectors * SECTOR as u16)
}
