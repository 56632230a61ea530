// Not a core: does I/O or calls a hypervisor.

//! A disk without content, for measuring the cost of everything but the disk. Reads leave the memory as it is.

use super::{Completion, Disk, DiskInfo, Engine, IoRequest};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};

/// A disk that has a length, but no content.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    info: DiskInfo,
}

impl NullDisk {
    /// A disk with these properties.
    pub fn new(info: DiskInfo) -> NullDisk {
        NullDisk { info }
    }
}

impl Disk for NullDisk {
    fn name(&self) -> String {
        "null".into()
    }

    fn info(&self) -> Result<DiskInfo> {
        Ok(self.info)
    }

    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>> {
        Ok(Box::new(NullEngine { completions: Vec::with_capacity(depth), never: never()? }))
    }
}

/// A descriptor that never becomes readable, for engines that complete every operation at once.
pub(super) fn never() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

struct NullEngine {
    completions: Vec<Completion>,
    never: EventFd,
}

impl Engine for NullEngine {
    #[inline]
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        self.completions.extend(requests.drain(..).map(|request| Completion { request, result: Ok(()) }));
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        if completions.is_empty() {
            std::mem::swap(&mut self.completions, completions);
        } else {
            completions.append(&mut self.completions);
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }
}
