//! A blkfront disk as the blocks of an NBD export: each command becomes as many requests as it needs, and none is
//! waited for.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use blkfront::split::{MAX_REQUEST_BYTES, split};
use blkfront::{Buffer, Completion, Disk, Operation, Request};
use nix::errno::Errno;

use crate::nbd::{Blocks, Op, Outcome};

/// Buffers kept for the next request.
const SPARE: usize = 256;
/// Parts that wait for room in the ring, beyond which no further question is taken.
const WAITING: usize = 1024;

/// The disk, and what was asked of it.
pub struct DiskBlocks {
    disk: Disk,
    jobs: HashMap<u64, Job>,
    waiting: VecDeque<Part>,
    /// Parts in the ring, by their token.
    parts: HashMap<u64, Part>,
    last: u64,
    spare: Vec<Buffer>,
    done: Vec<Completion>,
    finished: Vec<(u64, Outcome)>,
}

/// A question in flight.
struct Job {
    /// What is read, or to be written.
    data: Vec<u8>,
    /// Parts not yet done.
    left: usize,
    failed: Option<i32>,
    /// A flush follows the write.
    durable: bool,
    is_read: bool,
}

/// What one request does of a question.
struct Part {
    job: u64,
    operation: Operation,
    sector: u64,
    /// Range of the job's data.
    bytes: Range<usize>,
}

impl DiskBlocks {
    /// Blocks of this disk.
    pub fn new(disk: Disk) -> DiskBlocks {
        let (jobs, parts) = (HashMap::new(), HashMap::new());
        let (waiting, spare, done, finished) = (VecDeque::new(), Vec::new(), Vec::new(), Vec::new());
        DiskBlocks { disk, jobs, waiting, parts, last: 0, spare, done, finished }
    }

    /// The disk back, to be closed.
    pub fn into_disk(self) -> Disk {
        self.disk
    }

    /// Takes a question; `false` where it asks nothing of the disk and is answered already.
    fn take(&mut self, id: u64, op: Op) {
        let (operation, offset, job) = match op {
            Op::Read { offset, len } => {
                (Operation::Read, offset, Job::new(vec![0; len as usize], true, false))
            }
            Op::Write { offset, data, durable } => (Operation::Write, offset, Job::new(data, false, durable)),
            Op::Flush => (Operation::Flush, 0, Job::new(Vec::new(), false, false)),
            Op::Trim { .. } => return self.finished.push((id, Err(Errno::EOPNOTSUPP as i32))),
        };
        let len = job.data.len();
        self.jobs.insert(id, job);
        if operation == Operation::Flush {
            return self.flush(id);
        }
        for chunk in split(offset, len, MAX_REQUEST_BYTES) {
            let sector = chunk.sector();
            self.enqueue(Part { job: id, operation, sector, bytes: chunk.bytes });
        }
    }

    fn enqueue(&mut self, part: Part) {
        if let Some(job) = self.jobs.get_mut(&part.job) {
            job.left += 1;
            self.waiting.push_back(part);
        }
    }

    /// A flush for a question that has no other part left; nothing where the backend has no cache to flush.
    fn flush(&mut self, id: u64) {
        if self.disk.info().flush {
            self.enqueue(Part { job: id, operation: Operation::Flush, sector: 0, bytes: 0..0 });
        } else {
            self.finish(id);
        }
    }

    /// Moves waiting parts into the ring while there is room.
    fn fill_ring(&mut self) -> io::Result<()> {
        while let Some(part) = self.waiting.pop_front() {
            let buffer = match self.buffer_for(&part) {
                // The domain has no more pages to grant: one that is in use will do, later.
                Err(blkfront::Error::Hypervisor(hypervisor::Error::NoSpace(_))) if !self.parts.is_empty() => {
                    self.waiting.push_front(part);
                    break;
                }
                buffer => buffer.map_err(io::Error::other)?,
            };
            let Part { operation, sector, .. } = part;
            let bytes = part.bytes.len();
            self.last += 1;
            match self.disk.submit(Request { token: self.last, operation, sector, bytes, buffer }) {
                Ok(()) => drop(self.parts.insert(self.last, part)),
                Err(back) => {
                    self.keep(back.buffer);
                    self.waiting.push_front(part);
                    break;
                }
            }
        }
        self.disk.commit().map_err(io::Error::other)
    }

    fn buffer_for(&mut self, part: &Part) -> blkfront::Result<Option<Buffer>> {
        if part.operation == Operation::Flush {
            return Ok(None);
        }
        let buffer = match self.spare.pop() {
            Some(buffer) => buffer,
            None => self.disk.buffer(MAX_REQUEST_BYTES)?,
        };
        if let (Operation::Write, Some(job)) = (part.operation, self.jobs.get(&part.job)) {
            buffer.fill(&job.data[part.bytes.clone()]);
        }
        Ok(Some(buffer))
    }

    fn keep(&mut self, buffer: Option<Buffer>) {
        if self.spare.len() < SPARE {
            self.spare.extend(buffer);
        }
    }

    /// Takes what the ring has done.
    fn reap(&mut self) -> io::Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let polled = self.disk.poll(&mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.done = done;
        polled.map(drop).map_err(io::Error::other)
    }

    fn complete(&mut self, completion: Completion) {
        let error = completion.check().is_err().then_some(Errno::EIO as i32);
        let Some(part) = self.parts.remove(&completion.request.token) else { return };
        let buffer = completion.request.buffer;
        if let Some(job) = self.jobs.get_mut(&part.job) {
            job.failed = job.failed.or(error);
            job.left -= 1;
            if let (Operation::Read, None, Some(buffer)) = (part.operation, error, &buffer) {
                buffer.copy_to(&mut job.data[part.bytes.clone()]);
            }
            if job.left == 0 {
                let durable = std::mem::take(&mut job.durable) && job.failed.is_none();
                if durable { self.flush(part.job) } else { self.finish(part.job) }
            }
        }
        self.keep(buffer);
    }

    fn finish(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(&id) else { return };
        let data = if job.is_read { job.data } else { Vec::new() };
        self.finished.push((id, job.failed.map_or(Ok(data), Err)));
    }
}

impl Job {
    fn new(data: Vec<u8>, is_read: bool, durable: bool) -> Job {
        Job { data, left: 0, failed: None, durable, is_read }
    }
}

impl Blocks for DiskBlocks {
    fn submit(&mut self, id: u64, op: Op) -> Result<(), Op> {
        if self.waiting.len() >= WAITING {
            return Err(op);
        }
        self.take(id, op);
        Ok(())
    }

    fn poll(&mut self, answers: &mut Vec<(u64, Outcome)>) -> io::Result<()> {
        self.reap()?;
        if self.disk.is_closed() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the disk is closed"));
        }
        self.fill_ring()?;
        answers.append(&mut self.finished);
        Ok(())
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.disk.process_events().map_err(io::Error::other)?;
        let ready = self.disk.arm().map_err(io::Error::other)?;
        Ok(ready || self.disk.is_closed() || !self.finished.is_empty())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.disk.fd()
    }
}
