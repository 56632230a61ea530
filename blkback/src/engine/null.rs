//! A disk that does nothing: what remains is the cost of everything else. Reads leave the memory as it is.

use super::{Disk, DiskInfo, Done, Engine, Io};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};

/// A disk of a length, without content.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    info: DiskInfo,
}

impl NullDisk {
    /// A disk that says it is this.
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
        Ok(Box::new(NullEngine { done: Vec::with_capacity(depth), never: never()? }))
    }
}

/// A descriptor that never becomes readable: for engines that are done at once.
pub(super) fn never() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

struct NullEngine {
    done: Vec<Done>,
    never: EventFd,
}

impl Engine for NullEngine {
    #[inline]
    fn submit(&mut self, io: Box<Io>) -> std::result::Result<(), Box<Io>> {
        self.done.push(Done { io, result: Ok(()) });
        Ok(())
    }

    #[inline]
    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        if done.is_empty() {
            std::mem::swap(&mut self.done, done);
        } else {
            done.append(&mut self.done);
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }
}
