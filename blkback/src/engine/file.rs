// Not a core: does I/O or calls a hypervisor.

//! A raw image or a block device: opens, checks, locks and describes it.

use super::uring::UringEngine;
use super::{Disk, DiskInfo, Engine, Mode, OpenError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// A raw image or block device.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    file: Arc<File>,
    /// Held while the disk is open, so that another backend cannot open the image.
    _lock: Option<Flock<File>>,
    info: DiskInfo,
}

impl FileDisk {
    /// Opens an image; `direct` bypasses the page cache where file and medium support it (O_DIRECT at 512 bytes).
    ///
    /// # Errors
    /// Every [`OpenError`] but [`OpenError::Ram`].
    pub fn open(path: &Path, mode: Mode, direct: bool) -> Result<FileDisk, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.into(), found: kind_name(kind) });
        }
        let file = options(mode).open(path).map_err(|source| open_error(path, mode, source))?;
        let mut info = DiskInfo { read_only: mode.read_only(), ..DiskInfo::new(0) };
        (info.sector_size, info.physical_sector_size) = sector_sizes(&file).map_err(fail)?;
        let bytes = length(&file).map_err(fail)?;
        if bytes == 0 || !bytes.is_multiple_of(info.sector_size.into()) {
            return Err(OpenError::Length { path: path.into(), bytes });
        }
        info.sectors = bytes / 512;
        let direct_file = if direct { open_direct(&file, mode, info.sector_size) } else { None };
        let direct = direct_file.is_some();
        let (file, lock) = lock(direct_file.unwrap_or(file), path, mode)?;
        tracing::debug!(path = %path.display(), ?info, direct, "disk image opened");
        Ok(FileDisk { path: path.into(), file: Arc::new(file), _lock: lock, info })
    }
}

impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn info(&self) -> io::Result<DiskInfo> {
        let unit = u64::from(self.info.sector_size);
        // An incomplete last sector is not part of the disk.
        let bytes = length(&self.file)? / unit * unit;
        Ok(DiskInfo { sectors: bytes / 512, ..self.info })
    }

    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(UringEngine::new(self.file.clone(), depth)?))
    }
}

fn options(mode: Mode) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(!mode.read_only());
    options
}

/// Locks the file unless the mode shares it. The lock belongs to the open file that does the I/O: when the process
/// is killed, the lock is held until the kernel has completed the last operation, so that a late write of the killed
/// process cannot overwrite one of its successor.
fn lock(file: File, path: &Path, mode: Mode) -> Result<(File, Option<Flock<File>>), OpenError> {
    let lock = match mode {
        Mode::WriteShared => return Ok((file, None)),
        Mode::Write => FlockArg::LockExclusiveNonblock,
        Mode::Read => FlockArg::LockSharedNonblock,
    };
    let fail = |source| OpenError::Io { path: path.into(), source };
    match Flock::lock(file, lock) {
        Ok(lock) => Ok((lock.try_clone().map_err(fail)?, Some(lock))),
        Err((_, Errno::EWOULDBLOCK)) => {
            Err(OpenError::InUse { path: path.into(), holder: "another disk or program".into() })
        }
        Err((_, e)) => Err(fail(e.into())),
    }
}

fn open_error(path: &Path, mode: Mode, source: io::Error) -> OpenError {
    let not_writable = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM));
    if not_writable && !mode.read_only() && options(Mode::Read).open(path).is_ok() {
        return OpenError::ReadOnly { path: path.into() };
    }
    OpenError::Io { path: path.into(), source }
}

/// Opens the same file with O_DIRECT, if one sector can be read that way at the alignment of guests' buffers.
fn open_direct(file: &File, mode: Mode, sector_size: u32) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = options(mode).custom_flags(OFlag::O_DIRECT.bits()).open(path).ok()?;
    let page: MmapRegion = MmapRegion::new(8192).ok()?;
    // Not at a page's start: a guest's buffers are aligned to 512 bytes only.
    let offset = 512;
    let len = sector_size as usize;
    let read = page.get_slice(offset, len).ok()?.read_volatile_from(0, &mut &file, len);
    matches!(read, Ok(n) if n == len).then_some(file)
}

/// Length of a file or block device in bytes.
fn length(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.file_type().is_file() {
        return Ok(meta.len());
    }
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Logical and physical sector size in bytes: 512 for a file, from sysfs for a block device.
fn sector_sizes(file: &File) -> io::Result<(u32, u32)> {
    let meta = file.metadata()?;
    if !meta.file_type().is_block_device() {
        return Ok((512, 512));
    }
    let major = nix::sys::stat::major(meta.rdev());
    let minor = nix::sys::stat::minor(meta.rdev());
    let read = |name: &str| -> Option<u32> {
        // A partition has no queue directory of its own; its disk's is one level up.
        ["queue", "../queue"].iter().find_map(|queue| {
            let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
            std::fs::read_to_string(path).ok()?.trim_ascii().parse().ok()
        })
    };
    let logical = read("logical_block_size").filter(|s| s.is_power_of_two() && (512..=4096).contains(s));
    let logical = logical.unwrap_or(512);
    let physical = read("physical_block_size").filter(|s| s.is_multiple_of(logical));
    Ok((logical, physical.unwrap_or(logical)))
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "something else",
    }
}
