// Not a core: does I/O or calls a hypervisor.

//! A raw image or a block device as a disk.

use super::closing::{Closing, Open};
use super::discards::{self, Discards};
use super::image::{self, Access, OpenImage};
use super::threads::ThreadEngine;
use super::uring::{self, UringEngine};
use super::{Disk, DiskInfo, Engine, FlushState, MediumId, Mode, OpenError};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

/// How long the closing of an image is waited for.
const CLOSE: Duration = Duration::from_millis(100);

/// A raw image or block device.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    /// `None` only once this is being dropped.
    image: Option<OpenImage>,
    info: DiskInfo,
    medium: Option<MediumId>,
    flushes: Arc<FlushState>,
    detect_zeroes: AtomicBool,
    open: Open,
}

impl FileDisk {
    /// Opens an image, which offers discard where it can; `direct` bypasses the page cache where file and medium support it (O_DIRECT at
    /// 512 bytes).
    ///
    /// # Errors
    /// Every [`OpenError`] but [`OpenError::Ram`].
    pub fn open(path: &Path, mode: Mode, direct: bool) -> Result<FileDisk, OpenError> {
        let access = Access { mode, direct, user: None, own_loop: None, server: None };
        FileDisk::open_as(path, access).map(|disk| disk.with_discard(true))
    }

    /// Opens an image.
    ///
    /// # Errors
    /// Every [`OpenError`] but [`OpenError::Ram`].
    pub fn open_as(path: &Path, access: Access) -> Result<FileDisk, OpenError> {
        OpenImage::open(path, access).map(FileDisk::new)
    }

    /// Makes a disk of an open image.
    pub fn new(image: OpenImage) -> FileDisk {
        let (path, info) = (image.path().to_owned(), image.info());
        let medium = MediumId::of_file(image.file());
        let detect_zeroes = AtomicBool::new(false);
        let open = Open::default();
        FileDisk { path, image: Some(image), info, medium, flushes: Arc::default(), detect_zeroes, open }
    }

    fn image(&self) -> io::Result<&OpenImage> {
        Ok(self.image.as_ref().ok_or(Errno::EBADF)?)
    }

    /// Says whether it is a CD-ROM.
    pub fn with_cdrom(mut self, cdrom: bool) -> FileDisk {
        self.info.cdrom = cdrom;
        self.info.discard = self.info.discard.filter(|_| !cdrom);
        self
    }

    /// Offers discard if it is `wanted`, where this is no CD-ROM, may be written, and the medium can.
    pub fn with_discard(mut self, wanted: bool) -> FileDisk {
        let can = wanted && !self.info.read_only && !self.info.cdrom;
        let image = self.image.as_ref().filter(|_| can);
        self.info.discard = image.and_then(|image| discards::limits(image.file(), &self.info));
        self
    }
}

/// An engine that reads, writes and flushes a file: by io_uring where that may be used, otherwise by threads.
pub(super) fn engine_of_file(file: &Arc<File>, depth: usize) -> io::Result<Box<dyn Engine>> {
    Ok(match UringEngine::new(file.clone(), depth) {
        Ok(engine) => Box::new(engine),
        Err(error) if uring::is_refused(&error) => {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| tracing::warn!("disks are served by threads, which is slower: {error}"));
            Box::new(ThreadEngine::new(file.clone(), depth)?)
        }
        Err(error) => return Err(error),
    })
}

impl Drop for FileDisk {
    /// Closes the file and releases its locks, by a thread.
    fn drop(&mut self) {
        let image = self.image.take();
        self.open.close_by_a_thread(&self.path, CLOSE, move || drop(image));
    }
}

impl Disk for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn info(&self) -> io::Result<DiskInfo> {
        let unit = u64::from(self.info.sector_size);
        // An incomplete last sector is not part of the disk.
        let bytes = image::length(self.image()?.file())? / unit * unit;
        Ok(DiskInfo { sectors: bytes / 512, flush: self.flushes.is_supported(), ..self.info })
    }

    fn medium(&self) -> Option<MediumId> {
        self.medium
    }

    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let engine = engine_of_file(self.image()?.file(), depth)?;
        let engine = match self.info.discard {
            Some(limits) => {
                let zeroes = self.detect_zeroes.load(Ordering::Relaxed).then_some(limits);
                Box::new(Discards::new(engine, self.image()?.file().clone(), zeroes)?)
            }
            None => engine,
        };
        self.flushes.guard(engine)
    }

    fn closing(&self) -> Option<Closing> {
        Some(self.open.closing())
    }

    fn set_detect_zeroes(&self, wanted: bool) {
        self.detect_zeroes.store(wanted, Ordering::Relaxed);
    }
}
