// Not a core: does I/O or calls a hypervisor.

//! Discards of a file or block device: carried out by a thread of their own, one slice at a time, so that neither the ring's
//! thread nor reads and writes wait for them. The thread starts with the first one.
#![allow(unsafe_code)] // ioctl(2) with BLKDISCARD

use super::block_device::{is_block_device, queue_attribute, sysfs_attribute};
use super::discard_slices::slices;
use super::done::{Done, lock};
use super::{BouncePool, Completion, DiscardLimits, DiskInfo, Engine, IoRequest, Operation};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// `_IO(0x12, 119)` (linux/fs.h): the first byte and the number of bytes, two 64-bit numbers.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Past a file's end by so much nothing is allocated: a hole made there shows whether the file system can.
const PAST_END: u64 = 1 << 30;

/// What a file or block device, open for writing, can discard; `None` if it cannot.
pub(super) fn limits(file: &File, info: &DiskInfo) -> Option<DiscardLimits> {
    let meta = file.metadata().ok()?;
    let or_sector =
        |bytes: u32| if bytes.is_multiple_of(info.sector_size) { bytes } else { info.sector_size };
    if is_block_device(file) {
        queue_attribute(&meta, "discard_max_bytes").filter(|bytes| *bytes > 0)?;
        let granularity = queue_attribute(&meta, "discard_granularity").filter(|bytes| *bytes > 0)?;
        let alignment = sysfs_attribute(&meta, "discard_alignment").filter(|bytes| *bytes < granularity);
        return Some(DiscardLimits {
            granularity: or_sector(granularity),
            alignment: alignment.unwrap_or(0),
        });
    }
    let past_end = (info.sectors * 512).next_multiple_of(PAST_END) + PAST_END;
    punch(file, past_end..past_end + 4096).ok()?;
    let block = u32::try_from(meta.blksize()).ok().filter(|bytes| bytes.is_power_of_two());
    Some(DiscardLimits { granularity: or_sector(block.unwrap_or(info.sector_size)), alignment: 0 })
}

/// An engine, and the thread that discards for it.
pub(super) struct Discards {
    engine: Box<dyn Engine>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Discards that were submitted and are not handed back.
    out: usize,
    /// Those that were not started.
    failed: Vec<Completion>,
}

struct Shared {
    file: Arc<File>,
    waiting: Mutex<VecDeque<IoRequest>>,
    /// There are waiting discards, or no more will come.
    changed: Condvar,
    closed: AtomicBool,
    done: Done,
}

impl Discards {
    pub(super) fn new(engine: Box<dyn Engine>, file: Arc<File>) -> io::Result<Discards> {
        let shared = Arc::new(Shared {
            file,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            done: Done::new(0)?,
        });
        Ok(Discards { engine, shared, thread: None, out: 0, failed: Vec::new() })
    }

    #[cold]
    fn start(&mut self, requests: &mut Vec<IoRequest>) {
        let shared = self.shared.clone();
        if self.thread.is_none() {
            match std::thread::Builder::new().name("discard".into()).spawn(move || shared.run()) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                    for request in requests.extract_if(.., |request| is_discard(request)) {
                        let result = Err(io::Error::from_raw_os_error(errno));
                        self.failed.push(Completion { request, result });
                    }
                    return;
                }
            }
        }
        let mut waiting = lock(&self.shared.waiting);
        let before = waiting.len();
        waiting.extend(requests.extract_if(.., |request| is_discard(request)));
        self.out += waiting.len() - before;
        self.shared.changed.notify_one();
    }

    #[cold]
    fn take_done(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.shared.done.take(completions)?;
        self.out -= completions.len() - before;
        Ok(())
    }
}

fn is_discard(request: &IoRequest) -> bool {
    request.operation() == Operation::Discard
}

impl Shared {
    fn run(&self) {
        let is_device = is_block_device(&self.file);
        while let Some(request) = self.next() {
            let result = self.discard(&request, is_device);
            self.done.push(request, result);
        }
    }

    /// Waits for a discard; `None` if no more will come.
    fn next(&self) -> Option<IoRequest> {
        let mut waiting = lock(&self.waiting);
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(request) = waiting.pop_front() {
                return Some(request);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Discards slice by slice, until the engine is dropped.
    fn discard(&self, request: &IoRequest, is_device: bool) -> io::Result<()> {
        let start = request.sector() * 512;
        for slice in slices(start..start + request.len() as u64) {
            if self.closed.load(Ordering::Relaxed) {
                return Err(Errno::ECANCELED.into());
            }
            if is_device { discard_device(&self.file, slice)? } else { punch(&self.file, slice)? }
        }
        Ok(())
    }
}

/// Makes a hole in a file, which reads as zeroes; the file's length stays.
fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, flags, range.start as i64, (range.end - range.start) as i64) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

fn discard_device(file: &File, range: Range<u64>) -> io::Result<()> {
    let argument = [range.start, range.end - range.start];
    // SAFETY: BLKDISCARD reads two 64-bit numbers.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, argument.as_ptr()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

impl Engine for Discards {
    fn register(&mut self, pool: &BouncePool) -> bool {
        self.engine.register(pool)
    }

    #[inline]
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        if requests.iter().any(is_discard) {
            self.start(requests);
        }
        self.engine.submit(requests);
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.failed);
        if self.out > 0 {
            self.take_done(completions)?;
        }
        self.engine.poll(completions)
    }

    fn needs_poll(&self) -> bool {
        self.engine.needs_poll() || !self.failed.is_empty()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }

    fn discard_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.done.fd())
    }
}

impl Drop for Discards {
    /// Waits for the slice that is being discarded.
    fn drop(&mut self) {
        let waiting = lock(&self.shared.waiting);
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        drop(waiting);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // What was not carried out is dropped with the queue, and fails.
        lock(&self.shared.waiting).clear();
    }
}
