// Not a core: does I/O or calls a hypervisor.

//! Memory that outlives this process: mapped files of a directory.
//!
//! Everything that a backend wrote there before it was killed is there for the process that resumes its devices,
//! since the pages belong to the kernel. The directory should be on tmpfs (as /run is): its contents are of no use
//! after a reboot.
#![allow(unsafe_code)] // A mapped file as memory for in-flight logs.

use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, posix_fallocate};
use ring_abi::PAGE_SIZE;
use ring_abi::shm::Memory;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// A directory of named memory regions, accessible to its user alone.
///
/// ```
/// use inflight::InflightDir;
/// use ring_abi::shm::Memory;
///
/// let temporary = tempfile::tempdir().unwrap();
/// let dir = InflightDir::new(temporary.path())?;
/// let region = dir.create("vbd-1-51712", "ring 8", 4096)?;
/// assert_eq!(region.len(), 4096);
/// drop(region);
/// // After a restart:
/// assert!(dir.open("vbd-1-51712", "ring 8", 4096)?.is_some());
/// assert!(dir.open("vbd-1-51712", "ring 9", 4096)?.is_none(), "another connection");
/// # Ok::<(), inflight::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InflightDir(PathBuf);

impl InflightDir {
    /// Opens a directory, which is created (mode 0700) if it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be created.
    pub fn new(directory: impl Into<PathBuf>) -> Result<InflightDir> {
        let directory = directory.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|e| Error::io(format!("create {}", directory.display()), e))?;
        Ok(InflightDir(directory))
    }

    /// Creates a zeroed region of whole pages, replacing any region of this name. `belongs_to`, a text shorter than a
    /// page, is stored with it: [`InflightDir::open`] finds it by the same text only. The space is reserved: a write to
    /// the region never finds the file system full, which kills the process.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created, sized or mapped, as without space left.
    pub fn create(&self, name: &str, belongs_to: &str, bytes: usize) -> Result<InflightRegion> {
        let path = self.0.join(name);
        // Created under another name and renamed: a process killed here leaves either the old region or the new one.
        let part = self.0.join(format!("{name}.part"));
        let failed = |e| Error::io(format!("create {}", path.display()), e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&part).map_err(failed)?;
        let reserved = posix_fallocate(&file, 0, (PAGE_SIZE + bytes.next_multiple_of(PAGE_SIZE)) as i64);
        let written = reserved.map_err(std::io::Error::from);
        let written = written.and_then(|()| file.write_all_at(belongs_to.as_bytes(), 0));
        written.and_then(|()| std::fs::rename(&part, &path)).map_err(|e| {
            self.remove(&format!("{name}.part"));
            failed(e)
        })?;
        InflightRegion::over(file, &path)
    }

    /// Opens the region of this name, with its space reserved; `None` if there is none of at least `bytes` bytes with the same
    /// `belongs_to`.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it open; [`Error::Io`] if the file cannot be read or mapped, or no space is left
    /// for its holes.
    pub fn open(&self, name: &str, belongs_to: &str, bytes: usize) -> Result<Option<InflightRegion>> {
        let path = self.0.join(name);
        let failed = |e| Error::io(format!("open {}", path.display()), e);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = [0; PAGE_SIZE];
        if file.read_exact_at(&mut text, 0).is_err() {
            return Ok(None);
        }
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(PAGE_SIZE);
        if &text[..end] != belongs_to.as_bytes() {
            return Ok(None);
        }
        let found = file.metadata().map_err(failed)?.len();
        let expected = (PAGE_SIZE + bytes.next_multiple_of(PAGE_SIZE)) as u64;
        if found < expected {
            tracing::warn!(path = %path.display(), found, expected, "an in-flight region of too few bytes, as of another version");
            return Ok(None);
        }
        // An earlier version reserved nothing, and a copied file has holes.
        posix_fallocate(&file, 0, found as i64).map_err(|e| failed(e.into()))?;
        InflightRegion::over(file, &path).map(Some)
    }

    /// Returns the names of all regions.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io(format!("list {}", self.0.display()), e);
        let entries = std::fs::read_dir(&self.0).map_err(failed)?;
        entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Removes the region of this name, if there is one.
    pub fn remove(&self, name: &str) {
        let path = self.0.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "failed to remove an in-flight region");
            }
            _ => {}
        }
    }
}

/// A mapped region. Its file stays when this is dropped; one process at a time can have it open.
#[derive(Debug)]
pub struct InflightRegion {
    map: MmapRaw,
    _lock: Flock<File>,
}

impl InflightRegion {
    fn over(file: File, path: &Path) -> Result<InflightRegion> {
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            Errno::EWOULDBLOCK => Error::Busy(format!("{} is open in another process", path.display())),
            e => Error::io(format!("lock {}", path.display()), e),
        })?;
        let map = MmapOptions::new().offset(PAGE_SIZE as u64).map_raw(&*lock);
        let map = map.map_err(|e| Error::io(format!("map {}", path.display()), e))?;
        Ok(InflightRegion { map, _lock: lock })
    }
}

// SAFETY: mapped, page-aligned, a page or more, for the life of the value. Its bytes are reserved (posix_fallocate), and of those who
// may write to it (mode 0600) its owner alone does, who holds its lock and never makes it shorter.
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
    use std::os::unix::fs::MetadataExt;

    fn word(region: &InflightRegion) -> Slot<'_> {
        // SAFETY: the region is at least a page long, and outlives the slot.
        unsafe { Slot::new(region.base(), 64) }
    }

    #[test]
    fn region_after_a_restart_is_found_by_the_same_owner_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let dir = InflightDir::new(directory.path().join("inflight")).unwrap();
        assert!(dir.open("vbd-1-51712", "ring 8", 4096).unwrap().is_none());
        let region = dir.create("vbd-1-51712", "ring 8", 5000).unwrap();
        assert_eq!(region.len(), 8192);
        word(&region).store32(0, 7);
        assert_eq!(dir.names().unwrap(), ["vbd-1-51712"]);
        let error = dir.open("vbd-1-51712", "ring 8", 5000).unwrap_err();
        assert!(matches!(error, Error::Busy(_)), "{error}");
        drop(region);
        assert!(dir.open("vbd-1-51712", "ring 9", 5000).unwrap().is_none(), "another ring");
        assert!(dir.open("vbd-1-51712", "ring", 5000).unwrap().is_none(), "not just its beginning");
        assert!(dir.open("vbd-1-51712", "ring 8", 50_000).unwrap().is_none(), "too short");
        let region = dir.open("vbd-1-51712", "ring 8", 5000).unwrap().unwrap();
        assert_eq!(word(&region).load32(0), 7);
        drop(region);
        let region = dir.create("vbd-1-51712", "ring 8", 5000).unwrap();
        assert_eq!(word(&region).load32(0), 0, "zeroed");
        drop(region);
        dir.remove("vbd-1-51712");
        assert!(dir.open("vbd-1-51712", "ring 8", 5000).unwrap().is_none());
    }

    #[test]
    fn region_has_its_space_reserved_or_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let dir = InflightDir::new(directory.path()).unwrap();
        let region = dir.create("vbd-1-51712", "ring 8", 1 << 20).unwrap();
        let metadata = std::fs::metadata(directory.path().join("vbd-1-51712")).unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len(), "{} blocks", metadata.blocks());
        drop(region);
        // As of a program that reserves nothing.
        let path = directory.path().join("vbd-1-51712");
        let sparse = OpenOptions::new().write(true).open(&path).unwrap();
        sparse.set_len(PAGE_SIZE as u64).unwrap();
        sparse.set_len(PAGE_SIZE as u64 + (1 << 20)).unwrap();
        let _region = dir.open("vbd-1-51712", "ring 8", 1 << 20).unwrap().unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len(), "{} blocks", metadata.blocks());
        // More than any file can have.
        let error = dir.create("vbd-1-51728", "ring 8", i64::MAX as usize).unwrap_err().to_string();
        assert!(error.contains("vbd-1-51728"), "{error}");
        assert_eq!(dir.names().unwrap(), ["vbd-1-51712"]);
    }
}
