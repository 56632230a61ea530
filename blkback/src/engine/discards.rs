// Not a core: does I/O or calls a hypervisor.

//! Discards of a file or block device, and writes of zeroes that are to become holes: carried out by a thread of their own, one slice at
//! a time, so that neither the ring's thread nor reads and writes wait for them. The thread starts with the first one.
#![allow(unsafe_code)] // ioctl(2) with BLKDISCARD

use super::block_device::{is_block_device, queue_attribute, sysfs_attribute};
use super::discard_slices::slices;
use super::done::{Done, lock};
use super::zeroes::is_hole;
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
    /// The extents that writes of zeroes are looked for, if they are.
    zeroes: Option<DiscardLimits>,
    /// What was given to the thread and not taken back.
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
    done: Done<Completion>,
}

impl Discards {
    /// With `zeroes` writes of zeroes that have such an extent in them become holes.
    pub(super) fn new(
        engine: Box<dyn Engine>,
        file: Arc<File>,
        zeroes: Option<DiscardLimits>,
    ) -> io::Result<Discards> {
        let shared = Arc::new(Shared {
            file,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            done: Done::new(0)?,
        });
        Ok(Discards { engine, shared, thread: None, zeroes, out: 0, failed: Vec::new() })
    }

    /// Gives the thread what is its.
    #[cold]
    fn start(&mut self, requests: &mut Vec<IoRequest>) {
        let is_taken = |request: &mut IoRequest| {
            is_discard(request) || self.zeroes.is_some_and(|limits| is_hole(request, &limits))
        };
        let taken: Vec<IoRequest> = requests.extract_if(.., is_taken).collect();
        if taken.is_empty() {
            return;
        }
        if let Err(error) = self.start_thread() {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            let failed = |request| Completion { request, result: Err(io::Error::from_raw_os_error(errno)) };
            let (discards, writes): (Vec<_>, Vec<_>) = taken.into_iter().partition(is_discard);
            self.failed.extend(discards.into_iter().map(failed));
            requests.extend(writes);
            return;
        }
        self.out += taken.len();
        lock(&self.shared.waiting).extend(taken);
        self.shared.changed.notify_one();
    }

    fn start_thread(&mut self) -> io::Result<()> {
        if self.thread.is_none() {
            let shared = self.shared.clone();
            self.thread =
                Some(std::thread::Builder::new().name("discard".into()).spawn(move || shared.run())?);
        }
        Ok(())
    }

    /// Takes back what the thread has carried out. A write of zeroes that the medium cannot make a hole of is written.
    #[cold]
    fn take_done(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.shared.done.take(completions)?;
        self.out -= completions.len() - before;
        let is_unpunched = |done: &mut Completion| done.result.is_err() && !is_discard(&done.request);
        let mut writes: Vec<_> =
            completions.extract_if(before.., is_unpunched).map(|done| done.request).collect();
        if !writes.is_empty() {
            if self.zeroes.take().is_some() {
                tracing::info!("the medium makes no holes: zeroes are written");
            }
            self.engine.submit(&mut writes);
        }
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
            self.done.push(Completion { request, result });
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
            // What a device discards need not read as zeroes.
            if is_device && is_discard(request) {
                discard_device(&self.file, slice)?;
            } else {
                punch(&self.file, slice)?;
            }
        }
        Ok(())
    }
}

/// Makes a hole in a file, which reads as zeroes; the file's length stays. Of a block device that can, its zeroes take no space
/// (`blkdev_fallocate` of block/fops.c).
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
        if self.zeroes.is_some() || requests.iter().any(is_discard) {
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

#[cfg(test)]
mod tests {
    use super::super::{Disk, IoTable, RamDisk};
    use super::*;
    use crate::request::Tag;
    use vm_memory::{Bytes, MmapRegion, VolatileMemory};

    #[test]
    fn zeroes_that_cannot_become_a_hole_are_written() {
        let ram = RamDisk::new(DiskInfo::new(64)).unwrap();
        let limits = DiscardLimits { granularity: 4096, alignment: 0 };
        // It is not open for writing, so that no hole is made.
        let file = Arc::new(File::open("/dev/null").unwrap());
        let mut engine = Discards::new(ram.engine(1).unwrap(), file, Some(limits)).unwrap();
        let mut table = IoTable::new(1, || MmapRegion::<()>::new(4096).unwrap());
        let mut run = |operation, byte: u8| {
            table.memory_mut(Tag(0)).as_volatile_slice().write_obj(byte, 17).unwrap();
            let request =
                table.start(Tag(0), operation, 8, |memory, slices| slices.push(memory.as_volatile_slice()));
            engine.submit(&mut vec![request.unwrap()]);
            let mut completions = Vec::new();
            while completions.is_empty() {
                engine.poll(&mut completions).unwrap();
                std::thread::yield_now();
            }
            let Completion { request, result } = completions.remove(0);
            result.unwrap();
            table.finish(request);
            table.memory_mut(Tag(0)).as_volatile_slice().read_obj::<u8>(17).unwrap()
        };
        run(Operation::Write, 1);
        run(Operation::Write, 0);
        assert_eq!(run(Operation::Read, 5), 0);
    }
}
