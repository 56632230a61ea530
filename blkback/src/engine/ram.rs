// Not a core: does I/O or calls a hypervisor.

//! A disk in memory, the reference that the tests compare every other engine with.

use super::null::never;
use super::{Completion, Disk, DiskInfo, Engine, IoRequest, Operation};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::{MmapRegion, VolatileMemory};

/// What discarded sectors are overwritten with.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A disk in memory, zeroed at first; its content is lost with its last user.
#[derive(Clone, Debug)]
pub struct RamDisk {
    info: DiskInfo,
    memory: Arc<MmapRegion>,
}

impl RamDisk {
    /// Allocates a disk with these properties.
    ///
    /// # Errors
    /// `EINVAL` for a disk without sectors; the memory cannot be allocated.
    pub fn new(info: DiskInfo) -> Result<RamDisk> {
        let bytes = usize::try_from(info.sectors).ok().and_then(|s| s.checked_mul(512));
        let bytes = bytes.filter(|bytes| *bytes > 0).ok_or(Errno::EINVAL)?;
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
        Ok(Box::new(RamEngine {
            disk: self.clone(),
            completions: Vec::with_capacity(depth),
            never: never()?,
        }))
    }
}

struct RamEngine {
    disk: RamDisk,
    completions: Vec<Completion>,
    never: EventFd,
}

impl RamEngine {
    fn execute(&self, request: &IoRequest) -> Result<()> {
        if request.operation() == Operation::Flush {
            return Ok(());
        }
        let start =
            usize::try_from(request.sector()).ok().and_then(|s| s.checked_mul(512)).ok_or(Errno::EINVAL)?;
        let target = self.disk.memory.get_slice(start, request.len()).map_err(|_| Errno::EIO)?;
        if request.operation() == Operation::Discard {
            // In parts, as the zeroes come from memory.
            for at in (0..request.len()).step_by(ZEROES.len()) {
                let len = ZEROES.len().min(request.len() - at);
                target.subslice(at, len).map_err(|_| Errno::EIO)?.copy_from(&ZEROES[..len]);
            }
            return Ok(());
        }
        let mut offset = 0;
        for slice in request.slices() {
            let sectors = target.subslice(offset, slice.len()).map_err(|_| Errno::EIO)?;
            match request.operation() {
                Operation::Read => sectors.copy_to_volatile_slice(slice),
                Operation::Write => slice.copy_to_volatile_slice(sectors),
                Operation::Flush | Operation::Discard => {}
            }
            offset += slice.len();
        }
        Ok(())
    }
}

impl Engine for RamEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        for request in requests.drain(..) {
            let result = self.execute(&request);
            self.completions.push(Completion { request, result });
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        completions.append(&mut self.completions);
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }
}
