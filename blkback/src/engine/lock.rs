// Not a core: does I/O or calls a hypervisor.

//! The locks of an image, all of them on the open file that does the I/O: when a process is killed, they are held until the
//! kernel has completed its last operation.
//!
//! * flock, shared or exclusive: against other disks, and tools such as flock(1); `/proc/locks` tells whose it is.
//! * QEMU's byte locks (`RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE` of its block/file-posix.c): what it uses of an image, and what
//!   it does not share. They are locks of the open file (F_OFD_SETLK), shared ones even of writers, so that whoever may read
//!   the file can take them; a conflict is found by testing.
//! * a byte of the device that uses the image: where readers and writers share an image, its successor in another
//!   process waits for the last operation of its predecessor.

use super::{Mode, OpenError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// QEMU's permissions, by number: `BLK_PERM_CONSISTENT_READ`, `BLK_PERM_WRITE`, `BLK_PERM_RESIZE`.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// The byte of the first permission that is used.
const USED: i64 = 100;
/// The byte of the first permission that is not shared.
const NOT_SHARED: i64 = 200;
/// The first byte of devices, far beyond any image's end.
const DEVICES: i64 = 1 << 62;

/// The locks of an open file; they are released when this is dropped, unless it was [left](ImageLock::leave).
#[derive(Debug)]
pub(super) struct ImageLock {
    file: Arc<File>,
    /// Whether they are released before the file is closed.
    releases: bool,
}

impl ImageLock {
    /// Locks a file. `user` is a number of the device that uses the image.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another one has it, [`OpenError::Draining`] if an earlier process of the same device has.
    pub(super) fn acquire(
        file: File,
        path: &Path,
        mode: Mode,
        user: Option<u64>,
    ) -> Result<ImageLock, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        let locked = if mode == Mode::Write { file.try_lock() } else { file.try_lock_shared() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let lock = ImageLock::held(file);
        if !lock.lock_bytes(mode).map_err(fail)? {
            return Err(in_use(path));
        }
        if let Some(user) = user {
            let byte = DEVICES + (user & (DEVICES as u64 / 2 - 1)) as i64;
            if !(lock.lock_byte(byte).map_err(fail)? && lock.is_free(byte).map_err(fail)?) {
                return Err(OpenError::Draining { path: path.into() });
            }
        }
        Ok(lock)
    }

    /// Locks a file that is to take the place of another open file of the same image, by which this process has it in the other mode, `r` or
    /// `w`. At no moment the image is without locks that say so.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another one has the image too, which contradicts the mode. The old file has its locks then.
    pub(super) fn take_over(&self, file: File, path: &Path, mode: Mode) -> Result<ImageLock, OpenError> {
        let fail = |source| OpenError::Io { path: path.into(), source };
        match mode {
            // Bytes are locked meanwhile: whoever takes the file in between finds them.
            Mode::Write => self.file.unlock().map_err(fail)?,
            // If somebody is quicker, the new file finds it.
            Mode::Read | Mode::WriteShared => drop(self.file.try_lock_shared()),
        }
        let locked = if mode == Mode::Write { file.try_lock() } else { file.try_lock_shared() };
        let new = ImageLock::held(file);
        let taken = match locked {
            Ok(()) => new.take_bytes(mode).and_then(|taken| {
                self.release_bytes();
                Ok(taken && new.has_no_rival(mode)?)
            }),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(source)) => Err(source),
        };
        match taken {
            Ok(true) => return Ok(new),
            Ok(false) => new.give_back(self, mode),
            Err(source) => {
                new.give_back(self, mode);
                return Err(fail(source));
            }
        }
        Err(in_use(path))
    }

    /// Undoes [`ImageLock::take_over`], by which it was locked in a mode.
    pub(super) fn give_back(self, old: &ImageLock, mode: Mode) {
        let before = if mode == Mode::Write { Mode::Read } else { Mode::Write };
        // They were held a moment ago, and this one has kept others from them.
        let _ = old.take_bytes(before);
        drop(self);
        let _ = if before == Mode::Write { old.file.try_lock() } else { old.file.try_lock_shared() };
    }

    fn release_bytes(&self) {
        // It cannot fail: nothing is waited for.
        let _ =
            fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, USED, 2 * (NOT_SHARED - USED))));
    }

    /// The locks that an open file has already, whoever took them: they are the open file's, not a process's.
    pub(super) fn held(file: File) -> ImageLock {
        ImageLock { file: Arc::new(file), releases: true }
    }

    /// The file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Closes the file here, and leaves the locks to its other descriptors.
    pub(super) fn leave(mut self) {
        self.releases = false;
    }

    /// Takes QEMU's locks of what the mode uses and does not share, and then looks for others that contradict; `false` if there
    /// is one.
    fn lock_bytes(&self, mode: Mode) -> io::Result<bool> {
        // One of our own that does the same takes its locks before it looks, too: one of both sees the other.
        Ok(self.take_bytes(mode)? && self.has_no_rival(mode)?)
    }

    /// What a mode uses, and what it does not share.
    fn permissions(mode: Mode) -> (&'static [i64], &'static [i64]) {
        let used: &[i64] = if mode.read_only() { &[CONSISTENT_READ] } else { &[CONSISTENT_READ, WRITE] };
        let not_shared: &[i64] = if mode == Mode::WriteShared { &[] } else { &[WRITE, RESIZE] };
        (used, not_shared)
    }

    fn take_bytes(&self, mode: Mode) -> io::Result<bool> {
        let (used, not_shared) = ImageLock::permissions(mode);
        let own = used.iter().map(|bit| USED + bit).chain(not_shared.iter().map(|bit| NOT_SHARED + bit));
        for byte in own {
            if !self.lock_byte(byte)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_no_rival(&self, mode: Mode) -> io::Result<bool> {
        let (used, not_shared) = ImageLock::permissions(mode);
        // QEMU's tools let others write as long as they only read, and may look at a guest's disk (`qemu-img info -U`); a guest's
        // disk that somebody reads is in use all the same.
        let readers: &[i64] = if mode == Mode::Write { &[CONSISTENT_READ] } else { &[] };
        let others = used.iter().map(|bit| NOT_SHARED + bit);
        let others = others.chain(not_shared.iter().chain(readers).map(|bit| USED + bit));
        for byte in others {
            if !self.is_free(byte)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a shared lock of a byte; `false` if somebody has an exclusive one.
    fn lock_byte(&self, byte: i64) -> io::Result<bool> {
        match fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte, 1))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(e) => unsupported(e).map(|()| true),
        }
    }

    /// Whether no other open file has a lock of a byte.
    fn is_free(&self, byte: i64) -> io::Result<bool> {
        let mut found = range(libc::F_WRLCK, byte, 1);
        match fcntl(&*self.file, FcntlArg::F_OFD_GETLK(&mut found)) {
            Ok(_) => Ok(i32::from(found.l_type) == libc::F_UNLCK),
            Err(e) => unsupported(e).map(|()| true),
        }
    }
}

impl Drop for ImageLock {
    /// Releases the bytes and the file, as other descriptors of the open file may live on.
    fn drop(&mut self) {
        if self.releases {
            let _ = fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, 0)));
            let _ = self.file.unlock();
        }
    }
}

fn in_use(path: &Path) -> OpenError {
    OpenError::InUse { path: path.into(), holder: "another disk or program".into() }
}

/// A file system without these locks, as some network file systems are, is used without them.
fn unsupported(error: Errno) -> io::Result<()> {
    match error {
        Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS => {
            tracing::debug!(%error, "no byte locks here");
            Ok(())
        }
        error => Err(error.into()),
    }
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
