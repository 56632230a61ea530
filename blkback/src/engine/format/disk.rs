// Not a core: does I/O or calls a hypervisor.

//! A qcow2 image as a disk.

use super::chain::OpenChain;
use super::control::ImageControl;
use super::image::Image;
use super::layer::{Chain, Layer};
use super::place::MAX_FILES;
use super::queue::Queue;
use super::worker::Worker;
use crate::engine::base_cache::{BaseCache, DiskCache};
use crate::engine::closing::{Closing, Open};
use crate::engine::{DiscardLimits, Disk, DiskInfo, Engine, FlushState, MediumId, OpenError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the closing of an image is waited for.
const CLOSE: Duration = Duration::from_millis(500);

/// A qcow2 image, with those below it.
#[derive(Debug)]
pub struct Qcow2Disk {
    path: PathBuf,
    image: Arc<Image>,
    info: DiskInfo,
    /// What can be discarded, whether it is offered or not.
    discard: Option<DiscardLimits>,
    cluster_size: u64,
    medium: Option<MediumId>,
    flushes: Arc<FlushState>,
    detect_zeroes: AtomicBool,
    thread: Option<JoinHandle<()>>,
    open: Open,
}

impl Qcow2Disk {
    /// Makes a disk of open images, and starts the image's thread.
    ///
    /// # Errors
    /// [`OpenError::Format`] if one is not served, or not consistent; [`OpenError::Io`].
    pub fn new(chain: OpenChain) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::with_cache(chain, &BaseCache::default())
    }

    /// As [`Qcow2Disk::new`], with a cache of the files below the first.
    ///
    /// # Errors
    /// As [`Qcow2Disk::new`].
    pub fn with_cache(chain: OpenChain, cache: &BaseCache) -> Result<Qcow2Disk, OpenError> {
        let Some(top) = chain.layers.first() else {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(OpenError::Io { path: PathBuf::new(), source });
        };
        let (path, read_only) = (top.image.path().to_owned(), top.image.info().read_only);
        let medium = MediumId::of_file(top.image.file());
        let sector_size =
            chain.layers.iter().map(|layer| layer.image.info().sector_size).max().unwrap_or(512);
        let count = chain.layers.len().min(MAX_FILES);
        let layers = chain.layers.into_iter().enumerate();
        // The one that is written has the last number.
        let cache = DiskCache::new(cache);
        let of_base = |at: usize| Some(&cache).filter(|_| at > 0);
        let layers = layers.map(|(at, layer)| Layer::open(layer, (count - 1 - at) as u8, of_base(at)));
        let chain = Chain(layers.collect::<Result<_, _>>()?);
        let refuse = |what: String| OpenError::Format { path: path.clone(), what };
        let (bytes, version, cluster_size) = match chain.top().mapped() {
            Some(mapped) => (chain.top().size(), mapped.header.version, mapped.header.cluster_size()),
            None => return Err(refuse("found a raw image, expected a qcow2 one".into())),
        };
        if bytes < sector_size.into() {
            return Err(refuse(format!(
                "found a disk of {bytes} bytes, expected a sector of {sector_size} at least"
            )));
        }
        let clusters = chain.0.iter().filter_map(|layer| Some(layer.mapped()?.header.cluster_bits));
        let unit_bits = clusters.min().unwrap_or(16);
        if 1 << unit_bits < sector_size {
            return Err(refuse(format!(
                "found clusters of {} bytes, expected a sector of {sector_size} at least",
                1 << unit_bits
            )));
        }
        let can_discard = !read_only && (version > 2 || chain.0.len() == 1);
        let granularity = cluster_size as u32;
        let discard = can_discard.then_some(DiscardLimits { granularity, alignment: 0 });
        let files = chain.0.iter().rev().map(|layer| layer.file.clone()).collect();
        let image = Arc::new(Image::new(unit_bits, bytes, files, cache));
        let thread = start(&image, chain).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        Ok(Qcow2Disk {
            info: DiskInfo { sector_size, read_only, ..DiskInfo::new(bytes / 512) },
            path,
            image,
            discard,
            cluster_size,
            medium,
            flushes: Arc::default(),
            detect_zeroes: AtomicBool::new(false),
            thread: Some(thread),
            open: Open::default(),
        })
    }

    /// Says whether it is a CD-ROM.
    pub fn with_cdrom(mut self, cdrom: bool) -> Qcow2Disk {
        self.info.cdrom = cdrom;
        self.info.discard = self.info.discard.filter(|_| !cdrom);
        self
    }

    /// Offers discard if it is `wanted`, where this is no CD-ROM and clusters can be discarded.
    pub fn with_discard(mut self, wanted: bool) -> Qcow2Disk {
        self.info.discard = self.discard.filter(|_| wanted && !self.info.cdrom);
        self
    }
}

/// Starts the thread of an image.
fn start(image: &Arc<Image>, chain: Chain) -> io::Result<JoinHandle<()>> {
    /// Tells those who wait when the thread ends, however it does.
    struct End(Arc<Image>);

    impl Drop for End {
        fn drop(&mut self) {
            self.0.end();
        }
    }

    let (end, worker) = (End(image.clone()), Worker::new(image.clone(), chain));
    std::thread::Builder::new().name("image".into()).spawn(move || {
        let _end = end;
        worker.run();
    })
}

impl Drop for Qcow2Disk {
    /// Has the image's thread write what it has, and close the files.
    fn drop(&mut self) {
        self.image.close();
        let Some(thread) = self.thread.take() else { return };
        self.open.close_by_a_thread(&self.path, CLOSE, move || drop(thread.join()));
    }
}

impl Disk for Qcow2Disk {
    fn name(&self) -> String {
        format!("qcow2:{}", self.path.display())
    }

    fn info(&self) -> io::Result<DiskInfo> {
        let unit = u64::from(self.info.sector_size);
        let bytes = self.image.size.load(Ordering::Relaxed) / unit * unit;
        Ok(DiskInfo { sectors: bytes / 512, flush: self.flushes.is_supported(), ..self.info })
    }

    fn medium(&self) -> Option<MediumId> {
        self.medium
    }

    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let zeroes = self.info.discard.filter(|_| self.detect_zeroes.load(Ordering::Relaxed));
        let queue = Queue::new(self.image.clone(), depth, zeroes)?;
        self.flushes.guard(Box::new(queue))
    }

    fn image(&self) -> Option<ImageControl> {
        Some(ImageControl::new(self.image.clone(), self.cluster_size, self.info.read_only))
    }

    fn cache(&self) -> Option<DiskCache> {
        Some(self.image.cache.clone())
    }

    fn closing(&self) -> Option<Closing> {
        Some(self.open.closing())
    }

    fn set_detect_zeroes(&self, wanted: bool) {
        self.detect_zeroes.store(wanted, Ordering::Relaxed);
    }
}
