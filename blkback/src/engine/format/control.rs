// Not a core: does I/O or calls a hypervisor.

//! What can be done with an image while it is served, by whoever has its disk.

use super::chain::{MAX_LAYERS, OpenChain, OpenLayer};
use super::image::{Ask, Image, Job, Task};
use super::image_format::Format;
use super::jobs::refused;
use super::layer::Layer;
use super::progress::Progress;
use nix::errno::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

/// An image that is served. Its calls wait for the image's thread.
#[derive(Clone, Debug)]
pub struct ImageControl {
    image: Arc<Image>,
    cluster_size: u64,
    read_only: bool,
}

/// An image that is served, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format of the image that is the guest's own.
    pub format: Format,
    /// Bytes of its clusters.
    pub cluster_size: u64,
    /// Bytes of the disk.
    pub bytes: u64,
    /// The image and those below it.
    pub layers: Vec<PathBuf>,
}

impl ImageControl {
    pub(super) fn new(image: Arc<Image>, cluster_size: u64, read_only: bool) -> ImageControl {
        ImageControl { image, cluster_size, read_only }
    }

    /// The image as it is now.
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Qcow2,
            cluster_size: self.cluster_size,
            bytes: self.image.size.load(Ordering::Relaxed),
            layers: self.image.files().iter().map(|file| file.path().to_owned()).collect(),
        }
    }

    /// Makes the disk longer.
    ///
    /// # Errors
    /// EROFS, EINVAL if it would be shorter, or those of writing the image.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        self.ask(Job::Resize(bytes))
    }

    /// Has the guest's writes go to another image from now on: an empty one over the one that it has now, which is only read then. What
    /// the guest has been answered before this is in the image below.
    ///
    /// # Errors
    /// EROFS, EINVAL if the overlay is not such an image, or those of reading it.
    pub fn snapshot(&self, overlay: OpenChain) -> io::Result<()> {
        let Some(layer @ OpenLayer { format: Format::Qcow2, .. }) = overlay.layers.into_iter().next() else {
            return Err(Errno::EINVAL.into());
        };
        if layer.image.info().read_only {
            return Err(Errno::EINVAL.into());
        }
        let below = self.image.files().len();
        if below >= MAX_LAYERS {
            let expected = format!("{} at most, of {MAX_LAYERS} in a chain", MAX_LAYERS - 1);
            return Err(refused(format!("{below} images below the new one"), expected));
        }
        let layer = Layer::open(layer, self.image.free_number(), None).map_err(io::Error::other)?;
        self.ask(Job::Snapshot(Box::new(layer)))
    }

    /// Copies into the guest's own image what only the images below have, while the guest goes on, and leaves these then. What was copied
    /// by a call that was interrupted is not copied again.
    ///
    /// # Errors
    /// EROFS, ECANCELED, EBUSY beside another change, those of reading and writing the images, or there is no image below.
    pub fn stream(&self, progress: Arc<Progress>) -> io::Result<()> {
        self.ask(Job::Walk(Task::Stream, progress))
    }

    /// Moves what the guest's own image has into the one below, while the guest goes on; that one is [open for writing](ImageControl::replace).
    /// What the guest writes meanwhile may be in its own image again.
    ///
    /// # Errors
    /// As [`ImageControl::stream`]; EROFS if the image below is open for reading alone.
    pub fn commit(&self, progress: Arc<Progress>) -> io::Result<()> {
        self.ask(Job::Walk(Task::Commit, progress))
    }

    /// Uses another open file of the image that has so many above it, not 0. The one so far is closed.
    ///
    /// # Errors
    /// EROFS, EINVAL if it cannot be the same image, or those of reading it.
    pub fn replace(&self, at: usize, with: OpenLayer) -> io::Result<()> {
        let layer = Layer::open(with, self.image.free_number(), Some(&self.image.cache));
        self.ask(Job::Replace(at, Box::new(layer.map_err(io::Error::other)?)))
    }

    /// The path and format of the image that has so many above it, and the descriptors of its open file, as [`OpenImage::descriptors`].
    ///
    /// # Errors
    /// There is none, or no descriptor is left.
    ///
    /// [`OpenImage::descriptors`]: crate::engine::OpenImage::descriptors
    pub fn open_file(&self, at: usize) -> io::Result<(PathBuf, Format, Vec<OwnedFd>)> {
        let files = self.image.files();
        let file = files.get(at).ok_or(Errno::ENOENT)?;
        let (image, format) = file.open_image().ok_or(Errno::EBADF)?;
        let descriptors = image.descriptors().map(|fd| fd.try_clone_to_owned());
        Ok((file.path().to_owned(), format, descriptors.collect::<io::Result<_>>()?))
    }

    fn ask(&self, job: Job) -> io::Result<()> {
        if self.read_only {
            return Err(Errno::EROFS.into());
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let ended = || io::Error::other("the image is closed");
        if !self.image.ask(Ask::Job(job, reply)) {
            return Err(ended());
        }
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }
}
