//! Memory of our own that outlives this process: files of a folder, mapped.
//!
//! What a program wrote there before it was killed is there for its successor, to the last instruction: the pages are
//! the kernel's. The folder should be in memory too (tmpfs, as /run is), for nothing in it is worth more than the
//! machine's uptime.
#![allow(unsafe_code)] // A mapped file as memory for ledgers.

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

/// A folder of memory kept by name, for its owner alone.
#[derive(Clone, Debug)]
pub struct Keep(PathBuf);

impl Keep {
    /// Uses a folder, made where it is missing.
    ///
    /// # Errors
    /// The system's.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Keep> {
        let folder = folder.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|e| Error::io(format!("making {}", folder.display()), e))?;
        Ok(Keep(folder))
    }

    /// Fresh memory of whole pages, zeroed, in place of what was kept by this name. What it belongs to is written
    /// beside it, a text of less than a page: only who says the same finds it again.
    ///
    /// # Errors
    /// The system's.
    pub fn create(&self, name: &str, belongs_to: &str, octets: usize) -> Result<Kept> {
        let path = self.0.join(name);
        // Another name first: whoever is killed here leaves what was there or all of the new.
        let part = self.0.join(format!("{name}.part"));
        let failed = |e| Error::io(format!("keeping {}", path.display()), e);
        let options =
            || OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = options().map_err(failed)?;
        let written = file.set_len((PAGE_SIZE + octets.next_multiple_of(PAGE_SIZE)) as u64);
        written.and_then(|()| file.write_all_at(belongs_to.as_bytes(), 0)).map_err(failed)?;
        std::fs::rename(&part, &path).map_err(failed)?;
        Kept::over(file, &path)
    }

    /// What was kept by this name for the same owner; `None` where there is nothing, or another's.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it; the system's.
    pub fn open(&self, name: &str, belongs_to: &str, octets: usize) -> Result<Option<Kept>> {
        let path = self.0.join(name);
        let failed = |e| Error::io(format!("looking at {}", path.display()), e);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = [0; PAGE_SIZE];
        let whole = file.metadata().map_err(failed)?.len() >= (PAGE_SIZE + octets) as u64;
        if !whole || file.read_exact_at(&mut text, 0).is_err() {
            return Ok(None);
        }
        let end = text.iter().position(|octet| *octet == 0).unwrap_or(PAGE_SIZE);
        if &text[..end] != belongs_to.as_bytes() {
            return Ok(None);
        }
        Kept::over(file, &path).map(Some)
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
pub struct Kept {
    map: MmapRaw,
    _lock: Flock<File>,
}

impl Kept {
    fn over(file: File, path: &Path) -> Result<Kept> {
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            Errno::EWOULDBLOCK => Error::Busy(format!("{}: another process has it", path.display())),
            e => Error::io(format!("locking {}", path.display()), e),
        })?;
        let map = MmapOptions::new().offset(PAGE_SIZE as u64).map_raw(&*lock);
        let map = map.map_err(|e| Error::io(format!("mapping {}", path.display()), e))?;
        Ok(Kept { map, _lock: lock })
    }
}

// SAFETY: mapped, page-aligned, for the life of the value; the file is ours alone (its mode, its lock).
unsafe impl Memory for Kept {
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

    fn word(kept: &Kept) -> Slot<'_> {
        // SAFETY: a page of the memory is longer than that, and `kept` outlives the slot.
        unsafe { Slot::new(kept.base(), 64) }
    }

    #[test]
    fn what_is_kept_is_found_by_its_owner_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep::new(folder.path().join("inflight")).unwrap();
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
