//! io_uring on a file or block device: straight into and out of the guest's pages, one system call a batch.
#![allow(unsafe_code)] // Addresses of memory are given to the kernel.

use super::{Done, Engine, Io, Op, Slab};
use io_uring::{IoUring, opcode, squeue, types};
use libc::iovec;
use smallvec::SmallVec;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// The file, as registered with the ring.
const FILE: types::Fixed = types::Fixed(0);
/// The slab, as registered with the ring.
const SLAB: u16 = 0;
/// `IORING_ENTER_GETEVENTS`.
const GETEVENTS: u32 = 1;

/// How often one poll tries again what comes back unfinished at once.
const ROUNDS: usize = 4;

/// An operation in the kernel, and what the kernel reads while it is there.
#[derive(Default)]
struct Slot {
    io: Option<Box<Io>>,
    /// What is left to move; adjacent memory is one entry.
    iovecs: SmallVec<[iovec; 11]>,
    /// Bytes moved so far.
    moved: usize,
}

/// One thread's ring on one file.
pub(super) struct UringEngine {
    ring: IoUring,
    slots: Box<[Slot]>,
    free: Vec<usize>,
    to_submit: usize,
    /// Came back unfinished, to be submitted again.
    again: Vec<usize>,
    /// Over before they reached the kernel.
    early: Vec<Done>,
    /// A slab's memory is registered, as buffer 0.
    registered: bool,
    /// Keeps the registered file open.
    _file: Arc<File>,
}

impl UringEngine {
    pub(super) fn new(file: Arc<File>, depth: usize) -> io::Result<UringEngine> {
        let entries = u32::try_from(depth.clamp(1, 4096)).unwrap_or(4096);
        let ring = build(entries)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let slots = (0..entries).map(|_| Slot::default()).collect();
        let free = (0..entries as usize).rev().collect();
        let (again, early) = (Vec::new(), Vec::new());
        Ok(UringEngine { ring, slots, free, to_submit: 0, again, early, registered: false, _file: file })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Queues what is left of a slot's operation; the submission queue has a place for every slot.
    fn push(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(io) = &slot.io else { return };
        gather(io, slot.moved, &mut slot.iovecs);
        let offset = io.sector * 512 + slot.moved as u64;
        let fixed = self.registered && io.is_slabs();
        let entry = entry(io.op, &slot.iovecs, offset, fixed).user_data(at as u64);
        // SAFETY: the memory belongs to `slot.io` and the iovecs to `slot`; both stay where they are until the
        // kernel says that it is done with them (Drop waits for that).
        let queued = unsafe { self.ring.submission().push(&entry) };
        match queued {
            Ok(()) => self.to_submit += 1,
            Err(_) => self.again.push(at),
        }
    }

    /// Queues what came back unfinished.
    fn push_again(&mut self) {
        for at in std::mem::take(&mut self.again) {
            self.push(at);
        }
    }

    /// Tells the kernel what was queued, and lets it finish what it has.
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
            // Nothing was lost: what was queued is still queued.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let UringEngine { ring, slots, free, again, .. } = self;
        for completion in ring.completion() {
            let at = completion.user_data() as usize;
            let slot = &mut slots[at];
            let Some(io) = &slot.io else { continue };
            let result = match outcome(io, slot.moved, completion.result()) {
                Outcome::Over(result) => result,
                Outcome::Moved(bytes) => {
                    slot.moved += bytes;
                    again.push(at);
                    continue;
                }
            };
            if let Some(io) = slot.io.take() {
                done.push(Done { io, result });
                free.push(at);
            }
        }
    }
}

impl Engine for UringEngine {
    fn register(&mut self, slab: &Slab) -> bool {
        let region = slab.region();
        let all = iovec { iov_base: region.as_ptr().cast(), iov_len: region.size() };
        // SAFETY: the kernel pins the pages: they stay what they are whatever becomes of the mapping.
        let registered = unsafe { self.ring.submitter().register_buffers(&[all]) };
        self.registered =
            registered.inspect_err(|error| tracing::debug!(%error, "no registered memory")).is_ok();
        self.registered
    }

    fn submit(&mut self, io: Box<Io>) -> Result<(), Box<Io>> {
        if io.op != Op::Flush && io.is_empty() {
            self.early.push(Done { io, result: Ok(()) });
            return Ok(());
        }
        let Some(at) = self.free.pop() else { return Err(io) };
        self.slots[at].io = Some(io);
        self.slots[at].moved = 0;
        self.push(at);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.early);
        for _ in 0..ROUNDS {
            self.enter(0)?;
            self.reap(done);
            if self.again.is_empty() {
                return Ok(());
            }
            self.push_again();
        }
        // What was queued must reach the kernel: only then does the descriptor tell of it.
        self.enter(0)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for UringEngine {
    /// Waits for the kernel to be done with the memory it was given.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > self.again.len() {
            if let Err(error) = self.enter(1) {
                // Memory that the kernel may still write must not be reused: better lost than that.
                tracing::error!(%error, "a ring of the kernel's failed; leaking what it was given");
                self.slots.iter_mut().for_each(|slot| std::mem::forget(std::mem::take(slot)));
                return;
            }
            self.reap(&mut done);
        }
    }
}

/// A ring for this thread alone whose completions interrupt nobody, where the kernel knows that kind (6.0);
/// otherwise a plain one. Not DEFER_TASKRUN: with that a ring's descriptor does not wake who polls it.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut alone = IoUring::builder();
    alone.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_cqsize(entries * 2);
    alone.build(entries).or_else(|_| IoUring::builder().setup_cqsize(entries * 2).build(entries))
}

/// The memory from byte `from` on, adjacent pieces as one.
fn gather(io: &Io, from: usize, iovecs: &mut SmallVec<[iovec; 11]>) {
    iovecs.clear();
    let mut skip = from;
    for slice in io.slices() {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        let base = slice.ptr_guard_mut().as_ptr().wrapping_add(skipped);
        let len = slice.len() - skipped;
        match iovecs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                last.iov_len += len
            }
            _ => iovecs.push(iovec { iov_base: base.cast(), iov_len: len }),
        }
    }
}

fn entry(op: Op, iovecs: &[iovec], offset: u64, fixed: bool) -> squeue::Entry {
    match (op, iovecs) {
        (Op::Read, [one]) if fixed => {
            opcode::ReadFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, SLAB).offset(offset).build()
        }
        (Op::Write, [one]) if fixed => {
            opcode::WriteFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, SLAB)
                .offset(offset)
                .build()
        }
        (Op::Flush, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        (Op::Read, [one]) => {
            opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Op::Write, [one]) => {
            opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Op::Read, many) => opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build(),
        (Op::Write, many) => {
            opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
    }
}

enum Outcome {
    /// All was moved, or it failed.
    Over(io::Result<()>),
    /// So many bytes were moved; the rest is to be tried again.
    Moved(usize),
}

fn outcome(io: &Io, moved: usize, result: i32) -> Outcome {
    match result {
        _ if result == -libc::EINTR || result == -libc::EAGAIN => Outcome::Moved(0),
        _ if result < 0 => Outcome::Over(Err(io::Error::from_raw_os_error(-result))),
        _ if io.op == Op::Flush || moved + result as usize >= io.len() => Outcome::Over(Ok(())),
        // The file ends before the disk does: somebody cut it short.
        0 => Outcome::Over(Err(io::ErrorKind::UnexpectedEof.into())),
        bytes => Outcome::Moved(bytes as usize),
    }
}
