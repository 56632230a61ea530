// Not a core: does I/O or calls a hypervisor.

//! io_uring on a file or block device: reads into and writes from the guest's mapped pages, with one system call for
//! each batch.
#![allow(unsafe_code)] // The kernel is given addresses of memory.

use super::io::{IOVECS_PER_CALL, Iovecs, give_back, skip};
use super::{BouncePool, Completion, Engine, IoRequest, Operation};
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use libc::iovec;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// The file's index among the ring's registered files.
const FILE: types::Fixed = types::Fixed(0);
/// The bounce pool's index among the ring's registered buffers.
const POOL: u16 = 0;
/// `IORING_ENTER_GETEVENTS`.
const GETEVENTS: u32 = 1;

/// How often one poll resubmits operations that come back unfinished at once.
const MAX_RESUBMISSIONS: usize = 4;

/// An operation in the kernel.
#[derive(Default)]
struct Slot {
    request: Option<IoRequest>,
    /// Bytes read or written so far.
    transferred: usize,
    /// Of an operation that was carried out in part: the memory still to be read or written, which the kernel reads
    /// meanwhile.
    rest: Iovecs,
}

/// One thread's ring on one file.
pub(super) struct UringEngine {
    ring: IoUring,
    /// By tag.
    slots: Box<[Slot]>,
    /// Slots in use.
    in_flight: usize,
    to_submit: usize,
    /// Slots of operations that came back unfinished.
    unfinished: Vec<usize>,
    /// Operations complete without the kernel: those without bytes, and those with a tag that they cannot have.
    completed_early: Vec<Completion>,
    /// The addresses of a bounce pool's memory, if it is registered.
    registered: Range<usize>,
    /// Keeps the registered file open.
    _file: Arc<File>,
}

impl UringEngine {
    pub(super) fn new(file: Arc<File>, depth: usize) -> io::Result<UringEngine> {
        let entries = u32::try_from(depth.clamp(1, 4096)).unwrap_or(4096);
        let ring = build(entries).map_err(|e| refused("io_uring_setup", e))?;
        ring.submitter().register_files(&[file.as_raw_fd()]).map_err(|e| refused("io_uring_register", e))?;
        restrict(&ring).map_err(|e| refused("io_uring_register", e))?;
        let slots = (0..entries).map(|_| Slot::default()).collect();
        Ok(UringEngine {
            ring,
            slots,
            in_flight: 0,
            to_submit: 0,
            unfinished: Vec::new(),
            completed_early: Vec::new(),
            registered: 0..0,
            _file: file,
        })
    }

    /// Queues the rest of a slot's operation; the submission queue has an entry for every slot.
    fn push(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(request) = &slot.request else { return };
        let iovecs = match slot.transferred {
            0 => request.iovecs(),
            transferred => {
                skip(request.iovecs(), transferred, &mut slot.rest);
                &slot.rest
            }
        };
        // The rest follows as that of any operation that was carried out in part.
        let iovecs = &iovecs[..iovecs.len().min(IOVECS_PER_CALL)];
        let offset = request.sector() * 512 + slot.transferred as u64;
        let fixed = matches!(iovecs, [one] if self.registered.contains(&one.iov_base.addr()));
        let entry = entry(request.operation(), iovecs, offset, fixed).user_data(at as u64);
        // SAFETY: memory and iovecs belong to `slot`, and are valid while it has the request: until the kernel has
        // completed the operation (Drop waits for that).
        let queued = unsafe { self.ring.submission().push(&entry) };
        match queued {
            Ok(()) => self.to_submit += 1,
            Err(_) => self.unfinished.push(at),
        }
    }

    /// Queues the rest of all unfinished operations.
    fn resubmit(&mut self) {
        for at in std::mem::take(&mut self.unfinished) {
            self.push(at);
        }
    }

    /// Submits the queued entries to the kernel, and lets it run deferred completions.
    fn enter(&mut self, wait: usize) -> io::Result<()> {
        let deferred = self.ring.submission().taskrun();
        if self.to_submit == 0 && !deferred && wait == 0 {
            return Ok(());
        }
        // SAFETY: no argument is passed.
        let entered =
            unsafe { self.ring.submitter().enter::<()>(self.to_submit as u32, wait as u32, GETEVENTS, None) };
        match entered {
            Ok(taken) => self.to_submit -= taken.min(self.to_submit),
            // The entries are still queued.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let UringEngine { ring, slots, in_flight, unfinished, .. } = self;
        for completion in ring.completion() {
            let at = completion.user_data() as usize;
            let slot = &mut slots[at];
            let Some(request) = &slot.request else { continue };
            let result = match outcome(request, slot.transferred, completion.result()) {
                Outcome::Done(result) => result,
                Outcome::Partial(bytes) => {
                    slot.transferred += bytes;
                    unfinished.push(at);
                    continue;
                }
            };
            if let Some(request) = slot.request.take() {
                give_back(&mut slot.rest);
                completions.push(Completion { request, result });
                *in_flight -= 1;
            }
        }
    }
}

impl Engine for UringEngine {
    fn register(&mut self, pool: &BouncePool) -> bool {
        let region = pool.region();
        let all = iovec { iov_base: region.as_ptr().cast(), iov_len: region.size() };
        // SAFETY: the kernel pins the pages, which stay allocated even if the mapping is removed.
        let registered = unsafe { self.ring.submitter().register_buffers(&[all]) };
        match registered {
            Ok(()) => {
                let start = region.as_ptr().addr();
                self.registered = start..start + region.size();
                true
            }
            Err(error) => {
                tracing::debug!(%error, "failed to register the bounce pool");
                false
            }
        }
    }

    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        for request in requests.drain(..) {
            let at = request.tag().0 as usize;
            let result = match self.slots.get_mut(at).filter(|slot| slot.request.is_none()) {
                None => Err(io::ErrorKind::InvalidInput.into()),
                Some(_) if request.operation() != Operation::Flush && request.is_empty() => Ok(()),
                Some(slot) => {
                    slot.request = Some(request);
                    slot.transferred = 0;
                    self.in_flight += 1;
                    self.push(at);
                    continue;
                }
            };
            self.completed_early.push(Completion { request, result });
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.completed_early);
        for _ in 0..MAX_RESUBMISSIONS {
            self.enter(0)?;
            self.reap(completions);
            if self.unfinished.is_empty() {
                return Ok(());
            }
            self.resubmit();
        }
        // Queued entries must reach the kernel, else the descriptor does not become readable for them.
        self.enter(0)
    }

    fn needs_poll(&self) -> bool {
        self.to_submit > 0 || !self.unfinished.is_empty()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for UringEngine {
    /// Waits for the kernel to complete the operations that it has.
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while self.in_flight > self.unfinished.len() {
            if let Err(error) = self.enter(1) {
                // The kernel may still write to this memory, which must therefore never be reused.
                tracing::error!(%error, "failed to wait for io_uring; leaking the memory of operations in flight");
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap(&mut completions);
        }
        // The kernel ends a ring some time after its descriptor is closed, and would have the image open until then: whoever opens it
        // next would be told that it is written to.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// Why there is no io_uring, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}{advice}")]
struct Refused {
    call: &'static str,
    source: io::Error,
    advice: &'static str,
}

/// Whether an engine cannot be made because this process may not use io_uring, or not so much of it.
pub(super) fn is_refused(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.downcast_ref::<Refused>().is_some_and(|e| !e.advice.is_empty()))
}

fn refused(call: &'static str, source: io::Error) -> io::Error {
    let advice = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": expected that this process may use io_uring (sysctl kernel.io_uring_disabled, its seccomp filter)"
        }
        Some(libc::ENOSYS) => {
            ": expected a kernel with io_uring (Linux 5.10 or later), and a seccomp filter that allows it"
        }
        Some(libc::ENOMEM) => ": expected more memory that this process may lock (RLIMIT_MEMLOCK)",
        _ => "",
    };
    io::Error::new(source.kind(), Refused { call, source, advice })
}

/// Makes a ring with a single issuer and without interrupts on completion, where the kernel supports it (6.0);
/// otherwise a plain one. Not DEFER_TASKRUN: with it the ring's descriptor does not become readable on completion. It takes
/// nothing until [`restrict`] has enabled it.
fn build(entries: u32) -> io::Result<IoUring> {
    let plain = || {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * 2).setup_r_disabled();
        builder
    };
    let mut builder = plain();
    builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    builder.build(entries).or_else(|_| plain().build(entries))
}

/// Has the ring take operations of a disk on its registered file, buffers to be registered and the file to be given up, and nothing
/// else for good: seccomp sees none of what a ring does (IORING_REGISTER_RESTRICTIONS of io_uring_register(2)).
fn restrict(ring: &IoUring) -> io::Result<()> {
    /// `IORING_REGISTER_BUFFERS`.
    const REGISTER_BUFFERS: u8 = 0;
    /// `IORING_UNREGISTER_FILES`.
    const UNREGISTER_FILES: u8 = 3;
    let fixed_file = squeue::Flags::FIXED_FILE.bits();
    let mut allowed = vec![
        Restriction::register_op(REGISTER_BUFFERS),
        Restriction::register_op(UNREGISTER_FILES),
        Restriction::sqe_flags_allowed(fixed_file),
        Restriction::sqe_flags_required(fixed_file),
    ];
    let operations = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
    ];
    allowed.extend(operations.map(Restriction::sqe_op));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()
}

fn entry(operation: Operation, iovecs: &[iovec], offset: u64, fixed: bool) -> squeue::Entry {
    match (operation, iovecs) {
        (Operation::Read, [one]) if fixed => {
            opcode::ReadFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, POOL).offset(offset).build()
        }
        (Operation::Write, [one]) if fixed => {
            opcode::WriteFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, POOL)
                .offset(offset)
                .build()
        }
        // Carried out by a thread of its own (`discards`); the ring refuses this.
        (Operation::Discard, _) => opcode::Nop::new().build(),
        (Operation::Flush, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        (Operation::Read, [one]) => {
            opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Operation::Write, [one]) => {
            opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Operation::Read, many) => {
            opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
        (Operation::Write, many) => {
            opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
    }
}

enum Outcome {
    /// All bytes were read or written, or the operation failed.
    Done(io::Result<()>),
    /// So many bytes were read or written; the rest is to be submitted again.
    Partial(usize),
}

fn outcome(request: &IoRequest, transferred: usize, result: i32) -> Outcome {
    match result {
        _ if result == -libc::EINTR || result == -libc::EAGAIN => Outcome::Partial(0),
        _ if result < 0 => Outcome::Done(Err(io::Error::from_raw_os_error(-result))),
        _ if request.operation() == Operation::Flush || transferred + result as usize >= request.len() => {
            Outcome::Done(Ok(()))
        }
        // The file ends before the disk does: it was truncated.
        0 => Outcome::Done(Err(io::ErrorKind::UnexpectedEof.into())),
        bytes => Outcome::Partial(bytes as usize),
    }
}

#[cfg(test)]
mod tests;
