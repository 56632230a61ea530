// Not a core: does I/O or calls a hypervisor.

//! One open file of an image, for the image's own thread: its tables as `imago` reads and writes them, in the order that [`Order`] says,
//! and the data that this thread moves itself.
#![allow(unsafe_code)] // imago's interface of a file has unsafe functions to implement.

use super::header::{COMPRESSION, Compression};
use super::image_format::Format;
use super::order::Order;
use super::refcounts;
use crate::engine::base_cache::{CachedFile, DiskCache, Forgotten};
use crate::engine::done::lock;
use crate::engine::{OpenImage, image};
use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageExt};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::unistd::{Whence, lseek};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// The byte of a header with the feature bit of the compression, which `imago` does not know: it neither sees nor changes it.
const FEATURE_BYTE: u64 = 79;

/// A file of an image.
#[derive(Debug)]
pub(super) struct ImageFile {
    path: PathBuf,
    file: Arc<File>,
    /// Its number among the files of the image.
    number: u8,
    /// I/O is aligned to so many bytes: 1 unless it bypasses the page cache.
    align: usize,
    length: AtomicU64,
    /// The header has the feature bit of the compression.
    hides_compression: bool,
    /// `None` before an image's tables are known, and of a raw image.
    order: Mutex<Option<Order>>,
    /// The medium has lost something: nothing is acknowledged any more.
    failed: AtomicBool,
    /// The open image, with its locks, and its format.
    open: Option<(OpenImage, Format)>,
    /// Of an image that others may read too: what they and this one have read of it.
    cached: Option<Arc<CachedFile>>,
    /// It was written to, and is not cached any more.
    forgotten: OnceLock<Forgotten>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// # Errors
    /// The file cannot be asked for its length.
    pub(super) fn new(path: &Path, file: Arc<File>, number: u8, sector_size: u32) -> io::Result<ImageFile> {
        let flags = fcntl(&*file, FcntlArg::F_GETFL)?;
        let is_direct = OFlag::from_bits_truncate(flags).contains(OFlag::O_DIRECT);
        Ok(ImageFile {
            path: path.to_owned(),
            length: AtomicU64::new(image::length(&file)?),
            file,
            number,
            align: if is_direct { sector_size as usize } else { 1 },
            hides_compression: false,
            order: Mutex::new(None),
            failed: AtomicBool::new(false),
            open: None,
            cached: None,
            forgotten: OnceLock::new(),
            helper: CommonStorageHelper::default(),
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

    /// Bytes of the file, as far as this process has made it longer.
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

    /// Reads data; past the file's end it is zeroes.
    pub(super) fn read_data(self: &Arc<Self>, into: &mut [u8], offset: u64) -> io::Result<()> {
        if offset >= self.length() {
            into.fill(0);
            return Ok(());
        }
        TableFile(self.clone()).read(into, offset)
    }

    /// To be called before the file is changed: what was read of it is forgotten, by all who have it open.
    fn will_change(&self) {
        if let Some(cached) = &self.cached {
            self.forgotten.get_or_init(|| cached.forget());
        }
    }

    /// Writes data where no table is. Buffer and offset are aligned as the file needs it.
    pub(super) fn write_data(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with_order(Order::wrote_data);
        self.will_change();
        self.file.write_all_at(bytes, offset)?;
        self.length.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the file at least so long.
    pub(super) fn extend(&self, length: u64) -> io::Result<()> {
        if length > self.length() {
            self.will_change();
            self.file.set_len(length)?;
            self.length.store(length, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives a part of the file back to the medium, so that it reads as zeroes; `false` where that cannot.
    pub(super) fn punch(&self, offset: u64, bytes: u64) -> bool {
        self.will_change();
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
        // What a failed synchronization was to write is lost, and the next one would succeed.
        self.file.sync_data().inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        self.with_order(Order::synced);
        Ok(())
    }

    fn read_into(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
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

    /// The feature byte in a part of the file, if it is there and to be hidden.
    fn feature_byte<'b>(&self, bytes: &'b mut [u8], offset: u64) -> Option<&'b mut u8> {
        let at = FEATURE_BYTE.checked_sub(offset).filter(|_| self.hides_compression)?;
        bytes.get_mut(usize::try_from(at).ok()?)
    }

    fn write_table(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        let named = self.with_order(|order| order.named_anew(&range, bytes)).unwrap_or_default();
        named.into_iter().try_for_each(|cluster| self.count(cluster))?;
        if self.with_order(|order| order.needs_sync(&range)).unwrap_or(false) {
            self.sync_all_written()?;
        }
        if self.has_failed() {
            return Err(Errno::EIO.into());
        }
        self.will_change();
        self.file.write_all_at(bytes, offset)?;
        self.length.fetch_max(range.end, Ordering::Relaxed);
        self.with_order(|order| order.wrote(&range, bytes));
        Ok(())
    }
}

impl ImageFile {
    /// Enters a refcount of 1 for a table's cluster that has 0 in the file. `imago`, which has allocated it, enters the same later.
    fn count(&self, cluster: u64) -> io::Result<()> {
        let counter = self.with_order(|order| Some((order.counter(cluster)?, order.cluster()))).flatten();
        let Some(((entry, index, bits), size)) = counter else { return Ok(()) };
        let unit = self.align.max(512) as u64;
        let mut part = self.buffer(unit as usize)?;
        let part = part.as_mut().into_slice();
        self.read_into(part, entry / unit * unit)?;
        let at = (entry % unit) as usize;
        let block = u64::from_be_bytes(part[at..at + 8].try_into().unwrap_or_default()) & !511;
        // A block that is about to be entered counts itself.
        if block == 0 {
            return Ok(());
        }
        let mut buffer = self.buffer(size as usize)?;
        let counts = buffer.as_mut().into_slice();
        self.read_into(counts, block)?;
        if refcounts::is_zero(counts, index, bits) {
            refcounts::set_one(counts, index, bits);
            self.write_table(counts, block)?;
        }
        Ok(())
    }
}

/// A file as `imago` has it.
#[derive(Clone, Debug)]
pub(super) struct TableFile(pub(super) Arc<ImageFile>);

impl fmt::Display for TableFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.path.display().fmt(f)
    }
}

impl Storage for TableFile {
    fn mem_align(&self) -> usize {
        self.0.align
    }

    fn req_align(&self) -> usize {
        self.0.align
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.length())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        if offset >= self.0.length() {
            let what = format!(
                "found a table at {offset}, expected one before the file's end at {}",
                self.0.length()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        for mut part in bufv.into_inner() {
            self.0.read_into(&mut part, offset)?;
            if let Some(byte) = self.0.feature_byte(&mut part, offset) {
                *byte &= !(COMPRESSION as u8);
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let len = usize::try_from(bufv.len()).map_err(io::Error::other)?;
        let mut buffer = self.0.buffer(len)?;
        let bytes = &mut buffer.as_mut().into_slice()[..len];
        bufv.copy_into_slice(bytes);
        if let Some(byte) = self.0.feature_byte(bytes, offset) {
            *byte |= COMPRESSION as u8;
        }
        self.0.write_table(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_all_written()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.helper
    }

    fn resize(&self, _: u64, _: PreallocateMode) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
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
