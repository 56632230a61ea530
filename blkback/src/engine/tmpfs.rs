// Not a core: does I/O or calls a hypervisor.

//! Small reads and writes of a file on tmpfs, which the ring's thread carries out itself.
//!
//! tmpfs takes no operation that must not wait (`IOCB_NOWAIT`; preadv2(2) with RWF_NOWAIT is EOPNOTSUPP), so that io_uring hands each
//! one to a worker thread. To wake that, and the ring's thread again, costs many times what the copy of a page costs: with many rings
//! it is most of what a request costs. Only pages that were swapped out are waited for, by the one ring whose disk they are of. The
//! copies of large operations are left to the workers, which other processors run at the same time.

use super::threads::execute;
use super::{BouncePool, Completion, Engine, IoRequest, Operation};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes of the longest operation that the ring's thread carries out.
const LONGEST: usize = 16 << 10;

/// An engine of a file on tmpfs, and small operations that are complete already.
pub(super) struct TmpfsEngine {
    engine: Box<dyn Engine>,
    file: Arc<File>,
    completions: Vec<Completion>,
}

/// Whether a file is on tmpfs.
pub(super) fn is_on_tmpfs(file: &File) -> bool {
    fstatfs(file).is_ok_and(|statistics| statistics.filesystem_type() == TMPFS_MAGIC)
}

impl TmpfsEngine {
    /// Carries out small operations on `file`, and has `engine` carry out the others.
    pub(super) fn new(engine: Box<dyn Engine>, file: Arc<File>, depth: usize) -> TmpfsEngine {
        TmpfsEngine { engine, file, completions: Vec::with_capacity(depth) }
    }
}

impl Engine for TmpfsEngine {
    fn register(&mut self, pool: &BouncePool) -> bool {
        self.engine.register(pool)
    }

    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let is_small = |request: &mut IoRequest| {
            matches!(request.operation(), Operation::Read | Operation::Write) && request.len() <= LONGEST
        };
        for request in requests.extract_if(.., is_small) {
            let result = execute(&self.file, &request);
            self.completions.push(Completion { request, result });
        }
        self.engine.submit(requests);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.completions);
        self.engine.poll(completions)
    }

    fn needs_poll(&self) -> bool {
        self.engine.needs_poll()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }

    fn flush_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.flush_fd()
    }

    fn discard_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.discard_fd()
    }
}
