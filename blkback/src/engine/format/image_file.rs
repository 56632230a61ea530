// Not a core: does I/O or calls a hypervisor.

//! One open file of an image, for the image's own thread: its tables as `imago` reads and writes them, in the order that [`Order`] says,
//! and the data that this thread moves itself.

use super::header::Compression;
use super::image_format::Format;
use super::in_file::InFile;
use super::order::Order;
use crate::engine::base_cache::{CachedFile, DiskCache, Forgotten};
use crate::engine::done::lock;
use crate::engine::{OpenImage, image};
use imago::io_buffers::IoBuffer;
use imago::storage::drivers::CommonStorageHelper;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A file of an image.
#[derive(Debug)]
pub(super) struct ImageFile {
    path: PathBuf,
    file: Arc<File>,
    /// Its number among the files of the image.
    number: u8,
    /// I/O is aligned to so many bytes: 1 unless it bypasses the page cache.
    align: usize,
    /// Bytes of the file as far as it is used.
    length: AtomicU64,
    /// Bytes of the file with what is there for clusters to come, and which of them the medium has.
    reserved: AtomicU64,
    synced: AtomicU64,
    /// The header has the feature bit of the compression.
    hides_compression: bool,
    /// `None` before an image's tables are known, and of a raw image.
    order: Mutex<Option<Order>>,
    pub(super) in_file: Mutex<InFile>,
    /// The medium has lost something: nothing is acknowledged any more.
    failed: AtomicBool,
    /// The open image, with its locks, and its format.
    open: Option<(OpenImage, Format)>,
    /// Of an image that others may read too: what they and this one have read of it.
    cached: Option<Arc<CachedFile>>,
    /// It was written to, and is not cached any more.
    forgotten: OnceLock<Forgotten>,
    helper: CommonStorageHelper,
    #[cfg(test)]
    pub(super) recorder: OnceLock<Arc<dyn Record>>,
}

/// A test that is told what is done to a file.
#[cfg(test)]
pub(super) trait Record: std::fmt::Debug + Send + Sync {
    fn record(&self, change: Change<'_>);
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "a test reads it"))]
pub(super) enum Change<'c> {
    Write(&'c [u8], u64),
    Punch(u64, u64),
    Length(u64),
    Sync,
}

impl ImageFile {
    /// # Errors
    /// The file cannot be asked for its length.
    pub(super) fn new(path: &Path, file: Arc<File>, number: u8, sector_size: u32) -> io::Result<ImageFile> {
        let flags = fcntl(&*file, FcntlArg::F_GETFL)?;
        let is_direct = OFlag::from_bits_truncate(flags).contains(OFlag::O_DIRECT);
        let length = image::length(&file)?;
        Ok(ImageFile {
            path: path.to_owned(),
            length: AtomicU64::new(length),
            reserved: AtomicU64::new(length),
            synced: AtomicU64::new(length),
            file,
            number,
            align: if is_direct { sector_size as usize } else { 1 },
            hides_compression: false,
            order: Mutex::new(None),
            in_file: Mutex::default(),
            failed: AtomicBool::new(false),
            open: None,
            cached: None,
            forgotten: OnceLock::new(),
            helper: CommonStorageHelper::default(),
            #[cfg(test)]
            recorder: OnceLock::new(),
        })
    }

    pub(super) fn with_compression(mut self, compression: Compression) -> ImageFile {
        self.hides_compression = compression == Compression::Zstd;
        self
    }

    /// The file of an open image of a format, which is closed with this.
    ///
    /// # Errors
    /// As [`ImageFile::new`].
    pub(super) fn of_image(open: OpenImage, format: Format, number: u8) -> io::Result<ImageFile> {
        let file = ImageFile::new(open.path(), open.file().clone(), number, open.info().sector_size)?;
        Ok(ImageFile { open: Some((open, format)), ..file })
    }

    /// The open image, and its format; `None` of a file that is read for its header.
    pub(super) fn open_image(&self) -> Option<(&OpenImage, Format)> {
        self.open.as_ref().map(|(open, format)| (open, *format))
    }

    /// Whether it is open for reading alone.
    pub(super) fn is_read_only(&self) -> bool {
        self.open.as_ref().is_none_or(|(open, _)| open.info().read_only)
    }

    /// Uses a cache of what is read, if there is one.
    pub(super) fn with_cache(mut self, cache: Option<&DiskCache>) -> ImageFile {
        self.cached = cache.and_then(|cache| cache.file(&self.file, self.length())).map(Arc::new);
        self
    }

    /// The cache of what is read of the file, if there is one.
    pub(super) fn cached(&self) -> Option<&Arc<CachedFile>> {
        self.cached.as_ref()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// What buffers and offsets are multiples of, in bytes.
    pub(super) fn align(&self) -> usize {
        self.align
    }

    /// Whether the feature bit of the compression is there, and not for `imago`.
    pub(super) fn hides_compression(&self) -> bool {
        self.hides_compression
    }

    pub(super) fn helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    /// Whether it is a file, and not a device.
    pub(super) fn is_regular(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.is_file())
    }

    /// Bytes of the file that are used: behind them are clusters to come, which read as zeroes.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// Whether a synchronization has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn set_order(&self, order: Order) {
        *lock(&self.order) = Some(order);
    }

    pub(super) fn with_order<T>(&self, act: impl FnOnce(&mut Order) -> T) -> Option<T> {
        lock(&self.order).as_mut().map(act)
    }

    /// A buffer for data of this file.
    pub(super) fn buffer(&self, bytes: usize) -> io::Result<IoBuffer> {
        IoBuffer::new(bytes.next_multiple_of(self.align), self.align.max(8))
    }

    /// To be called before the file is changed: what was read of it is forgotten, by all who have it open.
    fn will_change(&self) {
        if let Some(cached) = &self.cached {
            self.forgotten.get_or_init(|| cached.forget());
        }
    }

    /// Tells a test what is done to the file.
    pub(super) fn record(&self, change: Change<'_>) {
        #[cfg(test)]
        if let Some(recorder) = self.recorder.get() {
            recorder.record(change);
        }
        let _ = change;
    }

    /// Writes data where no table is. Buffer and offset are aligned as the file needs it.
    pub(super) fn write_data(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with_order(Order::wrote_data);
        self.write_fresh(bytes, offset)
    }

    /// Writes data where there are zeroes, which may as well be there after a power cut.
    pub(super) fn write_fresh(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        lock(&self.in_file).forget(&(offset..offset + bytes.len() as u64));
        self.write_at(bytes, offset)
    }

    /// Writes anything.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.will_change();
        self.file.write_all_at(bytes, offset)?;
        self.record(Change::Write(bytes, offset));
        self.length.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        self.reserved.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a part of the file was never used, so that it reads as zeroes, and is there after a power cut.
    pub(super) fn is_fresh(&self, part: &Range<u64>) -> bool {
        part.start >= self.length() && part.end <= self.synced.load(Ordering::Relaxed)
    }

    /// Uses the file up to this byte.
    pub(super) fn extend(&self, length: u64) -> io::Result<()> {
        if length > self.reserved.load(Ordering::Relaxed) {
            self.set_length(length)?;
        }
        self.length.fetch_max(length, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the file so long for clusters to come, if that can be.
    pub(super) fn reserve(&self, length: u64) {
        if length > self.reserved.load(Ordering::Relaxed)
            && let Err(error) = self.set_length(length)
        {
            tracing::debug!(path = %self.path.display(), %error, "a file is not made longer ahead");
        }
    }

    /// Makes the file shorter, whose end nobody uses.
    pub(super) fn shorten(&self, length: u64) -> io::Result<()> {
        self.length.store(length, Ordering::Relaxed);
        self.trim()
    }

    /// Makes the file as long as it is used.
    pub(super) fn trim(&self) -> io::Result<()> {
        match self.length() < self.reserved.load(Ordering::Relaxed) {
            true => self.set_length(self.length()),
            false => Ok(()),
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.will_change();
        self.file.set_len(length)?;
        self.record(Change::Length(length));
        self.reserved.store(length, Ordering::Relaxed);
        self.synced.fetch_min(length, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a part of the file back to the medium, so that it reads as zeroes; `false` where that cannot.
    pub(super) fn punch(&self, offset: u64, bytes: u64) -> bool {
        self.will_change();
        self.record(Change::Punch(offset, bytes));
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punched = fallocate(&*self.file, flags, offset as i64, bytes as i64);
        punched.inspect_err(|error| tracing::debug!(%error, "no hole is made")).is_ok()
    }

    /// How many of so many bytes from an offset on are a hole, as far as the file system tells.
    pub(super) fn hole(&self, offset: u64, bytes: u64) -> u64 {
        match lseek(&*self.file, offset as i64, Whence::SeekData) {
            Ok(data) => (data as u64).saturating_sub(offset).min(bytes),
            // There is no data behind it.
            Err(Errno::ENXIO) => bytes,
            Err(_) => 0,
        }
    }

    /// Synchronizes the medium with all that was written.
    pub(super) fn sync_all_written(&self) -> io::Result<()> {
        if self.has_failed() {
            return Err(Errno::EIO.into());
        }
        let reserved = self.reserved.load(Ordering::Relaxed);
        // What a failed synchronization was to write is lost, and the next one would succeed.
        self.file.sync_data().inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        self.record(Change::Sync);
        self.synced.store(reserved, Ordering::Relaxed);
        self.with_order(Order::synced);
        Ok(())
    }

    pub(super) fn read_into(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let read = match &self.cached {
                Some(cached) => cached.read_at(&self.file, buffer, offset),
                None => self.file.read_at(buffer, offset),
            };
            match read {
                Ok(0) => {
                    buffer.fill(0);
                    return Ok(());
                }
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::BaseCache;

    #[test]
    fn cached_file_that_is_written_is_forgotten_before_that_and_cached_again_when_it_is_closed() {
        let cache = BaseCache::new(1 << 20).unwrap();
        let disk_cache = DiskCache::new(&cache);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("base");
        std::fs::write(&path, [1; 8192]).unwrap();
        let open = || {
            let file = File::options().read(true).write(true).open(&path).unwrap();
            Arc::new(ImageFile::new(&path, Arc::new(file), 0, 512).unwrap().with_cache(Some(&disk_cache)))
        };
        let read = |file: &Arc<ImageFile>| {
            let mut bytes = [0; 512];
            file.read_data(&mut bytes, 4096).unwrap();
            bytes
        };
        let (writer, reader) = (open(), open());
        assert_eq!((read(&writer), read(&reader)), ([1; 512], [1; 512]));
        let cached = || disk_cache.stats().unwrap().cached_bytes;
        assert_eq!(cached(), 32 << 10);
        writer.write_data(&[2; 512], 4096).unwrap();
        assert_eq!((read(&writer), read(&reader), cached()), ([2; 512], [2; 512], 0));
        writer.punch(4096, 4096);
        assert_eq!((read(&writer), read(&reader), cached()), ([0; 512], [0; 512], 0));
        drop(writer);
        assert_eq!((read(&reader), cached()), ([0; 512], 32 << 10));
    }
}
