// Not a core: does I/O or calls a hypervisor.

//! What can be done with an image while it is served, by whoever has its disk.

use super::chain::{Format, OpenChain, OpenLayer, read_header};
use super::image::{Ask, Image, Job};
use super::layer::Layer;
use super::place::MAX_FILES;
use nix::errno::Errno;
use std::io;
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
        let files = (0..self.image.files() as u8).rev().filter_map(|number| self.image.file(number));
        ImageInfo {
            format: Format::Qcow2,
            cluster_size: self.cluster_size,
            bytes: self.image.size.load(Ordering::Relaxed),
            layers: files.map(|file| file.path().to_owned()).collect(),
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
        let mut layers = overlay.layers.into_iter();
        let (Some(OpenLayer { image, format: Format::Qcow2 }), number) = (layers.next(), self.image.files())
        else {
            return Err(Errno::EINVAL.into());
        };
        if number >= MAX_FILES || image.info().read_only {
            return Err(Errno::EINVAL.into());
        }
        let header = read_header(&image).map_err(io::Error::other)?;
        self.ask(Job::Snapshot(Box::new(Layer::qcow2(image, number as u8, header, None)?)))
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
