// Not a core: does I/O or calls a hypervisor.

//! A pool of threads on a file or block device, each in a system call of its own: for where the kernel refuses io_uring.
#![allow(unsafe_code)] // preadv and pwritev are given addresses of the guest's memory.

use super::done::{Done, lock};
use super::io::{IOVECS_PER_CALL, Iovecs, skip};
use super::{Completion, Engine, IoRequest, Operation};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads of one engine: as many operations are in the kernel at once.
const THREADS: usize = 8;

/// One ring's threads on one file.
pub(super) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// By tag: whether the operation is out.
    out: Box<[bool]>,
    /// Operations that were not started, as their tags are not theirs.
    refused: Vec<Completion>,
}

struct Shared {
    file: Arc<File>,
    waiting: Mutex<Waiting>,
    /// There are waiting operations, or no more will come.
    changed: Condvar,
    done: Done<Completion>,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<IoRequest>,
    closed: bool,
}

impl ThreadEngine {
    pub(super) fn new(file: Arc<File>, depth: usize) -> io::Result<ThreadEngine> {
        let shared = Arc::new(Shared {
            file,
            waiting: Mutex::new(Waiting { requests: VecDeque::with_capacity(depth), closed: false }),
            changed: Condvar::new(),
            done: Done::new(depth)?,
        });
        let out = vec![false; depth].into();
        // Dropped with the threads that were started, if one cannot be.
        let mut engine = ThreadEngine { shared, threads: Vec::new(), out, refused: Vec::new() };
        for _ in 0..depth.clamp(1, THREADS) {
            let shared = engine.shared.clone();
            let thread = std::thread::Builder::new().name("disk".into()).spawn(move || shared.run())?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }
}

impl Shared {
    fn run(&self) {
        while let Some(request) = self.next() {
            let result = execute(&self.file, &request);
            self.done.push(Completion { request, result });
        }
    }

    /// Waits for an operation; `None` if no more will come.
    fn next(&self) -> Option<IoRequest> {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Engine for ThreadEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let mut waiting = lock(&self.shared.waiting);
        for request in requests.drain(..) {
            match self.out.get_mut(request.tag().0 as usize).filter(|out| !**out) {
                Some(out) => {
                    *out = true;
                    waiting.requests.push_back(request);
                    self.shared.changed.notify_one();
                }
                None => {
                    let result = Err(io::ErrorKind::InvalidInput.into());
                    self.refused.push(Completion { request, result });
                }
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.refused);
        let first = completions.len();
        self.shared.done.take(completions)?;
        for completion in &completions[first..] {
            self.out[completion.request.tag().0 as usize] = false;
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.done.fd()
    }
}

impl Drop for ThreadEngine {
    /// Waits for the operations that were submitted.
    fn drop(&mut self) {
        lock(&self.shared.waiting).closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn execute(file: &File, request: &IoRequest) -> io::Result<()> {
    match request.operation() {
        Operation::Flush => return file.sync_data(),
        // Carried out by a thread of its own: `discards`.
        Operation::Discard => return Err(io::ErrorKind::Unsupported.into()),
        Operation::Read | Operation::Write => {}
    }
    let mut rest = Iovecs::new();
    let mut transferred = 0;
    while transferred < request.len() {
        skip(request.iovecs(), transferred, &mut rest);
        let offset = (request.sector() * 512 + transferred as u64) as i64;
        match transfer(file, request.operation(), &rest, offset) {
            // The file ends before the disk does: it was truncated.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => transferred += bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn transfer(file: &File, operation: Operation, iovecs: &Iovecs, offset: i64) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    let count = iovecs.len().min(IOVECS_PER_CALL) as i32;
    // SAFETY: the iovecs describe memory that is valid while the request lives, which this function's caller has. The kernel
    // writes to it for a read alone.
    let bytes = unsafe {
        match operation {
            Operation::Write => libc::pwritev(fd, iovecs.as_ptr(), count, offset),
            _ => libc::preadv(fd, iovecs.as_ptr(), count, offset),
        }
    };
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}
