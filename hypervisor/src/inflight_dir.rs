//! Memory of our own that outlives this process: files of a directory, mapped.
//!
//! What a program wrote there before it was killed is there for its successor, to the last instruction: the pages are
//! the kernel's. The directory should be in memory too (tmpfs, as /run is), for nothing in it is worth more than the
//! machine's uptime.
#![allow(unsafe_code)] // A mapped file as memory for in-flight logs.

use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ring_abi::PAGE_SIZE;
use ring_abi::shm::Memory;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// A directory of memory kept by name, for its owner alone.
#[derive(Clone, Debug)]
pub struct InflightDir(PathBuf);

impl InflightDir {
    /// Uses a directory, made where it is missing.
    ///
    /// # Errors
    /// The system's.
    pub fn new(directory: impl Into<PathBuf>) -> Result<InflightDir> {
        let directory = directory.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|e| Error::io(format!("making {}", directory.display()), e))?;
        Ok(InflightDir(directory))
    }

    /// Fresh memory of whole pages, zeroed, in place of what was kept by this name. What it belongs to is written
    /// beside it, a text of less than a page: only who says the same finds it again.
    ///
    /// # Errors
    /// The system's.
    pub fn create(&self, name: &str, belongs_to: &str, bytes: usize) -> Result<InflightRegion> {
        let path = self.0.join(name);
        // Another name first: whoever is killed here leaves what was there or all of the new.
        let part = self.0.join(format!("{name}.part"));
        let failed = |e| Error::io(format!("keeping {}", path.display()), e);
        let options =
            || OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = options().map_err(failed)?;
        let written = file.set_len((PAGE_SIZE + bytes.next_multiple_of(PAGE_SIZE)) as u64);
        written.and_then(|()| file.write_all_at(belongs_to.as_bytes(), 0)).map_err(failed)?;
        std::fs::rename(&part, &path).map_err(failed)?;
        InflightRegion::over(file, &path)
    }

    /// What was kept by this name for the same owner; `None` where there is nothing, or another's.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it; the system's.
    pub fn open(&self, name: &str, belongs_to: &str, bytes: usize) -> Result<Option<InflightRegion>> {
        let path = self.0.join(name);
        let failed = |e| Error::io(format!("looking at {}", path.display()), e);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = [0; PAGE_SIZE];
        let whole = file.metadata().map_err(failed)?.len() >= (PAGE_SIZE + bytes) as u64;
        if !whole || file.read_exact_at(&mut text, 0).is_err() {
            return Ok(None);
        }
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(PAGE_SIZE);
        if &text[..end] != belongs_to.as_bytes() {
            return Ok(None);
        }
        InflightRegion::over(file, &path).map(Some)
    }

    /// Every name by which something is kept.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io(format!("looking through {}", self.0.display()), e);
        let entries = std::fs::read_dir(&self.0).map_err(failed)?;
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Forgets what was kept by this name, if anything was.
    pub fn forget(&self, name: &str) {
        let path = self.0.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot be forgotten");
            }
            _ => {}
        }
    }
}

/// Kept memory. It stays when this is dropped; one process at a time has it.
#[derive(Debug)]
pub struct InflightRegion {
    map: MmapRaw,
    _lock: Flock<File>,
}

impl InflightRegion {
    fn over(file: File, path: &Path) -> Result<InflightRegion> {
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            Errno::EWOULDBLOCK => Error::Busy(format!("{}: another process has it", path.display())),
            e => Error::io(format!("locking {}", path.display()), e),
        })?;
        let map = MmapOptions::new().offset(PAGE_SIZE as u64).map_raw(&*lock);
        let map = map.map_err(|e| Error::io(format!("mapping {}", path.display()), e))?;
        Ok(InflightRegion { map, _lock: lock })
    }
}

// SAFETY: mapped, page-aligned, for the life of the value; the file is ours alone (its mode, its lock).
unsafe impl Memory for InflightRegion {
    fn base(&self) -> NonNull<u8> {
        // SAFETY: a mapping is never at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr()) }
    }
    fn len(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::shm::Slot;

    fn word(kept: &InflightRegion) -> Slot<'_> {
        // SAFETY: a page of the memory is longer than that, and `kept` outlives the slot.
        unsafe { Slot::new(kept.base(), 64) }
    }

    #[test]
    fn what_is_kept_is_found_by_its_owner_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let keep = InflightDir::new(directory.path().join("inflight")).unwrap();
        assert!(keep.open("vbd-1-51712", "ring 8", 4096).unwrap().is_none());
        let kept = keep.create("vbd-1-51712", "ring 8", 5000).unwrap();
        assert_eq!(kept.len(), 8192);
        word(&kept).store32(0, 7);
        assert_eq!(keep.names().unwrap(), ["vbd-1-51712"]);
        let error = keep.open("vbd-1-51712", "ring 8", 5000).unwrap_err();
        assert!(matches!(error, Error::Busy(_)), "{error}");
        drop(kept);
        assert!(keep.open("vbd-1-51712", "ring 9", 5000).unwrap().is_none(), "another ring");
        assert!(keep.open("vbd-1-51712", "ring", 5000).unwrap().is_none(), "not just its beginning");
        assert!(keep.open("vbd-1-51712", "ring 8", 50_000).unwrap().is_none(), "too short");
        let kept = keep.open("vbd-1-51712", "ring 8", 5000).unwrap().unwrap();
        assert_eq!(word(&kept).load32(0), 7);
        drop(kept);
        let kept = keep.create("vbd-1-51712", "ring 8", 5000).unwrap();
        assert_eq!(word(&kept).load32(0), 0, "fresh");
        drop(kept);
        keep.forget("vbd-1-51712");
        assert!(keep.open("vbd-1-51712", "ring 8", 5000).unwrap().is_none());
    }
}
