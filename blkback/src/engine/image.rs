// Not a core: does I/O or calls a hypervisor.

//! Opens, checks and locks a raw image or a block device. The open image may be sent to another process, which does its I/O: what it has
//! of locks and claims, its descriptors have.

use super::block_device::{is_block_device, queue_attribute};
use super::lock::ImageLock;
use super::{DiskInfo, Mode, OpenError, claims};
use nix::fcntl::OFlag;
use nix::sys::statfs::{self, FsType, fstatfs};
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What the guest may do, and who else may use the image.
    pub mode: Mode,
    /// Bypass the page cache where file and medium support it (O_DIRECT at 512 bytes).
    pub direct: bool,
    /// A number of the device that uses the image, the same in every process that serves it.
    pub user: Option<u64>,
    /// The loop device that the toolstack's script has made of the image for this disk: major and minor number.
    pub own_loop: Option<(u64, u64)>,
    /// The process that does the I/O, if this one opens the image for it: that it has images open is no other use of them.
    pub server: Option<u32>,
}

/// An image that is open for I/O, and locked: no other backend can open it until this is dropped, which may take long.
#[derive(Debug)]
pub struct OpenImage {
    path: PathBuf,
    info: DiskInfo,
    /// Of the file that does the I/O.
    lock: ImageLock,
    /// Of a loop device: its file's.
    file_lock: Option<ImageLock>,
}

impl OpenImage {
    /// Opens an image.
    ///
    /// # Errors
    /// Every [`OpenError`] but [`OpenError::Ram`].
    pub fn open(path: &Path, access: Access) -> Result<OpenImage, OpenError> {
        let image = OpenImage::open_container(path, access)?;
        let unit = u64::from(image.info.sector_size);
        let bytes = length(image.file()).map_err(|source| OpenError::Io { path: path.into(), source })?;
        if bytes % unit > 0 {
            let (path, rest) = (path.display(), bytes % unit);
            tracing::warn!(%path, "{bytes} bytes are no multiple of {unit}: the last {rest} are not part of the disk");
        }
        Ok(image)
    }

    /// Opens an image whose file is not the disk itself, and may have any length.
    ///
    /// # Errors
    /// As [`OpenImage::open`].
    pub(super) fn open_container(path: &Path, access: Access) -> Result<OpenImage, OpenError> {
        let Opened { file, info, meta, has_writers } = Opened::open(path, access, false)?;
        let lock = ImageLock::acquire(file, path, access.mode, access.user)?;
        let file_lock = match meta.is_file() {
            true => check_file(path, &meta, access, has_writers).map(|()| None)?,
            false => lock_file_of_loop_device(path, &meta, access)?,
        };
        tracing::debug!(path = %path.display(), ?info, "disk image opened");
        Ok(OpenImage { path: path.into(), info, lock, file_lock })
    }

    /// Opens an image that is open in the other mode, `r` or `w`, by the [descriptors](OpenImage::descriptors) `held`, and takes their locks
    /// over. `may_open` is asked about the open file before that.
    ///
    /// # Errors
    /// As [`OpenImage::open`]; [`OpenError::Format`] if another image is at the path. What is held has its locks then.
    pub(super) fn reopen(
        path: &Path,
        access: Access,
        held: Vec<OwnedFd>,
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenImage, OpenError> {
        // Whoever has sent them keeps them.
        let held: Vec<_> = held.into_iter().map(|fd| ManuallyDrop::new(ImageLock::held(fd.into()))).collect();
        let outcome = OpenImage::reopen_held(path, access, &held, may_open);
        held.into_iter().for_each(|held| ManuallyDrop::into_inner(held).leave());
        outcome
    }

    fn reopen_held(
        path: &Path,
        access: Access,
        held: &[ManuallyDrop<ImageLock>],
        may_open: &dyn Fn(&Path, BorrowedFd<'_>) -> Result<(), String>,
    ) -> Result<OpenImage, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        let another = || {
            let what = "found another image at this path, expected the one that is open".to_owned();
            OpenError::Format { path: path.into(), what }
        };
        let Opened { file, info, meta, has_writers } = Opened::open(path, access, true)?;
        let old = held.first().ok_or_else(another)?;
        let number = |meta: &Metadata| (meta.dev(), meta.ino());
        if number(&old.file().metadata().map_err(fail)?) != number(&meta) {
            return Err(another());
        }
        may_open(path, file.as_fd()).map_err(|what| OpenError::Denied { what })?;
        if meta.is_file() {
            check_file(path, &meta, access, has_writers)?;
        }
        let lock = old.take_over(file, path, access.mode)?;
        let file_of_loop = || {
            let (old, number) = (held.get(1)?, claims::number(&meta));
            let backing = claims::file_of_loop_device(number).unwrap_or_default();
            let file = File::open(&backing).map_err(fail);
            Some(file.and_then(|file| old.take_over(file, &backing, access.mode)))
        };
        match file_of_loop().transpose() {
            Ok(file_lock) => Ok(OpenImage { path: path.into(), info, lock, file_lock }),
            Err(error) => {
                lock.give_back(old, access.mode);
                Err(error)
            }
        }
    }

    /// An image that another process has opened, whose [descriptors](OpenImage::descriptors) this one was sent; `None` if they are not as
    /// many as an image has.
    pub fn received(
        path: PathBuf,
        info: DiskInfo,
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Option<OpenImage> {
        let mut locks = descriptors.into_iter().map(|fd| ImageLock::held(fd.into()));
        let image = OpenImage { path, info, lock: locks.next()?, file_lock: locks.next() };
        locks.next().is_none().then_some(image)
    }

    /// What another process needs to have it open too: the file that does the I/O, and of a loop device its file.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.lock), self.file_lock.as_ref()].into_iter().flatten().map(|lock| lock.file().as_fd())
    }

    /// Closes the image in this process, and leaves its locks to the process that was sent its descriptors.
    pub fn leave(self) {
        self.lock.leave();
        self.file_lock.into_iter().for_each(ImageLock::leave);
    }

    /// The image's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk's properties as they were found.
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// The file that does the I/O.
    pub fn file(&self) -> &Arc<File> {
        self.lock.file()
    }
}

/// An image that is open for I/O and not locked.
struct Opened {
    file: File,
    info: DiskInfo,
    meta: Metadata,
    /// Somebody had it open for writing before.
    has_writers: bool,
}

impl Opened {
    /// `is_ours`: a device that is claimed is claimed by this process.
    fn open(path: &Path, access: Access, is_ours: bool) -> Result<Opened, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        let mode = access.mode;
        let meta = std::fs::metadata(path).map_err(fail)?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.into(), found: kind_name(kind) });
        }
        let has_writers = kind.is_file() && mode == Mode::Write && claims::has_writers(path);
        let file = options(mode).open(path).map_err(|source| open_error(path, mode, source))?;
        if kind.is_file() && is_of_kernel(&file) {
            return Err(OpenError::Kind { path: path.into(), found: "a setting of the kernel" });
        }
        let mut info = DiskInfo { read_only: mode.read_only(), ..DiskInfo::new(0) };
        (info.sector_size, info.physical_sector_size) = sector_sizes(&file).map_err(fail)?;
        let bytes = length(&file).map_err(fail)?;
        info.sectors = whole_sectors(path, bytes, info.sector_size)?;
        if !is_ours && is_block_device(&file) && mode == Mode::Read {
            check_readable_device(&file, path)?;
        }
        let file = open_for_io(file, path, access, info.sector_size)?;
        Ok(Opened { file, info, meta, has_writers })
    }
}

/// File systems whose files are the kernel's own state, and hold no data.
const OF_KERNEL: [FsType; 11] = [
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::DEBUGFS_MAGIC,
    statfs::TRACEFS_MAGIC,
    statfs::SECURITYFS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
    statfs::BPF_FS_MAGIC,
    statfs::NSFS_MAGIC,
    // CONFIGFS_MAGIC of fs/configfs/mount.c, EFIVARFS_MAGIC of linux/magic.h.
    FsType(0x6265_6570),
    FsType(0xde5e_81e4),
];

fn is_of_kernel(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stat| OF_KERNEL.contains(&stat.filesystem_type()))
}

/// The disk's length in units of 512 bytes: an incomplete last sector is not part of it, as with loop and nbd.
fn whole_sectors(path: &Path, bytes: u64, sector_size: u32) -> Result<u64, OpenError> {
    let rest = bytes % u64::from(sector_size);
    if bytes == rest {
        return Err(OpenError::Length { path: path.into(), bytes, sector_size });
    }
    Ok((bytes - rest) / 512)
}

/// Checks that nobody in this domain uses a file that is to be a guest's alone.
fn check_file(path: &Path, meta: &Metadata, access: Access, has_writers: bool) -> Result<(), OpenError> {
    if access.mode != Mode::Write {
        return Ok(());
    }
    let loop_device = claims::loop_device_of(meta, access.own_loop);
    // Who writes is looked for among all processes, so only where somebody does.
    let is_written = has_writers && access.own_loop.is_none();
    let user = loop_device.or_else(|| is_written.then(|| claims::writer(meta, access.server)).flatten());
    match user {
        Some(user) => Err(OpenError::Claimed { path: path.into(), user }),
        None => Ok(()),
    }
}

/// Of a loop device, locks its file too: they are one image.
fn lock_file_of_loop_device(
    path: &Path,
    meta: &Metadata,
    access: Access,
) -> Result<Option<ImageLock>, OpenError> {
    let Some(backing) = claims::file_of_loop_device(claims::number(meta)) else { return Ok(None) };
    // One that is deleted, or of another mount namespace, cannot be opened under another name here either.
    let Ok(file) = File::open(&backing) else { return Ok(None) };
    match ImageLock::acquire(file, &backing, access.mode, access.user) {
        Ok(lock) => Ok(Some(lock)),
        Err(OpenError::InUse { holder, .. }) => Err(OpenError::InUse { path: path.into(), holder }),
        Err(error) => Err(error),
    }
}

/// Opens the same image again for I/O, with O_DIRECT if that works. A block device that is to be a guest's alone is claimed
/// (O_EXCL), as mounts and the device mapper claim theirs.
fn open_for_io(file: File, path: &Path, access: Access, sector_size: u32) -> Result<File, OpenError> {
    let exclusive = is_block_device(&file) && access.mode == Mode::Write;
    let again = |flags: i32| {
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        options(access.mode).custom_flags(flags).open(same)
    };
    let claim = if exclusive { OFlag::O_EXCL.bits() } else { 0 };
    if access.direct
        && let Ok(direct) = again(OFlag::O_DIRECT.bits() | claim)
        && can_read_directly(&direct, sector_size)
    {
        return Ok(direct);
    }
    if !exclusive {
        return Ok(file);
    }
    again(claim).map_err(|source| busy(path, &file, source, false))
}

/// Checks that a device which others may read, too, is written to by nobody. A claim to try ends at once.
fn check_readable_device(file: &File, path: &Path) -> Result<(), OpenError> {
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    match options(Mode::Read).custom_flags(OFlag::O_EXCL.bits()).open(same) {
        Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
            let Ok(meta) = file.metadata() else { return Ok(()) };
            // One that is mounted for reading alone is claimed too.
            match claims::user_of_device(claims::number(&meta), true) {
                Some(user) => Err(OpenError::Claimed { path: path.into(), user }),
                None if claims::user_of_device(claims::number(&meta), false).is_some() => Ok(()),
                None => Err(busy(path, file, source, true)),
            }
        }
        _ => Ok(()),
    }
}

/// The error that a device cannot be claimed.
fn busy(path: &Path, file: &File, source: io::Error, read_only: bool) -> OpenError {
    if source.raw_os_error() != Some(libc::EBUSY) {
        return OpenError::Io { path: path.into(), source };
    }
    let number = file.metadata().ok().as_ref().map(claims::number);
    match number.and_then(|number| claims::user_of_device(number, read_only)) {
        Some(user) => OpenError::Claimed { path: path.into(), user },
        None => OpenError::InUse { path: path.into(), holder: "another disk or program".into() },
    }
}

fn options(mode: Mode) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(!mode.read_only());
    options
}

fn open_error(path: &Path, mode: Mode, source: io::Error) -> OpenError {
    let not_writable = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM));
    if not_writable && !mode.read_only() && options(Mode::Read).open(path).is_ok() {
        return OpenError::ReadOnly { path: path.into() };
    }
    OpenError::Io { path: path.into(), source }
}

/// Whether one sector can be read with O_DIRECT at the alignment of guests' buffers.
fn can_read_directly(mut file: &File, sector_size: u32) -> bool {
    // Not at a page's start: a guest's buffers are aligned to 512 bytes only.
    let offset = 512;
    let len = sector_size as usize;
    let Ok(page) = MmapRegion::<()>::new(8192) else { return false };
    let slice = page.get_slice(offset, len);
    slice.is_ok_and(|slice| slice.read_volatile_from(0, &mut file, len).is_ok_and(|read| read == len))
}

/// Length of a file or block device in bytes.
pub(super) fn length(file: &File) -> io::Result<u64> {
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
    let read = |name: &str| queue_attribute(&meta, name);
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
