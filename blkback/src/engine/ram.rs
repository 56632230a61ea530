//! A disk in memory: the model that every other engine is compared with.

use super::null::never;
use super::{Disk, DiskInfo, Done, Engine, Io, Op};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::{MmapRegion, VolatileMemory};

/// A disk of zeroes at first, gone with its last user.
#[derive(Clone, Debug)]
pub struct RamDisk {
    info: DiskInfo,
    memory: Arc<MmapRegion>,
}

impl RamDisk {
    /// A disk that says it is this; its length is taken from there.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn new(info: DiskInfo) -> Result<RamDisk> {
        let bytes = usize::try_from(info.sectors).ok().and_then(|s| s.checked_mul(512));
        let bytes = bytes.filter(|o| *o > 0).ok_or(Errno::EINVAL)?;
        let memory = Arc::new(MmapRegion::new(bytes).map_err(std::io::Error::other)?);
        Ok(RamDisk { info, memory })
    }
}

impl Disk for RamDisk {
    fn name(&self) -> String {
        "ram".into()
    }

    fn info(&self) -> Result<DiskInfo> {
        Ok(self.info)
    }

    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>> {
        Ok(Box::new(RamEngine { disk: self.clone(), done: Vec::with_capacity(depth), never: never()? }))
    }
}

struct RamEngine {
    disk: RamDisk,
    done: Vec<Done>,
    never: EventFd,
}

impl RamEngine {
    fn carry_out(&self, io: &Io) -> Result<()> {
        if io.op == Op::Flush {
            return Ok(());
        }
        let start = usize::try_from(io.sector).ok().and_then(|s| s.checked_mul(512)).ok_or(Errno::EINVAL)?;
        let place = self.disk.memory.get_slice(start, io.len()).map_err(|_| Errno::EIO)?;
        let mut at = 0;
        for slice in io.slices() {
            let part = place.subslice(at, slice.len()).map_err(|_| Errno::EIO)?;
            match io.op {
                Op::Read => part.copy_to_volatile_slice(slice),
                Op::Write => slice.copy_to_volatile_slice(part),
                Op::Flush => {}
            }
            at += slice.len();
        }
        Ok(())
    }
}

impl Engine for RamEngine {
    fn submit(&mut self, io: Box<Io>) -> std::result::Result<(), Box<Io>> {
        let result = self.carry_out(&io);
        self.done.push(Done { io, result });
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Done>) -> Result<()> {
        done.append(&mut self.done);
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }
}
