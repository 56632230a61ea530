//! dom0's end: asks the process that opens images, and makes disks of what it answers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use blkback::Disk;
use blkback::engine::format::{Format, OpenChain, Qcow2Disk};
use blkback::engine::spec::Source;
use blkback::engine::{Access, FileDisk, Spec};
use nix::errno::Errno;
use xenbus::driver::Failure;

use super::image_dirs::ImageDirs;
use super::protocol::{Refusal, Reply, Request};
use super::{packet, server};

/// What opens images: another process, or threads of this one.
#[derive(Clone, Debug)]
pub struct Opener {
    requests: Arc<OwnedFd>,
}

/// An open disk; of an image the device and inode numbers of its file.
pub type Opened = (Arc<dyn Disk>, Option<(u64, u64)>);

impl Opener {
    pub(super) fn new(requests: OwnedFd) -> Opener {
        Opener { requests: Arc::new(requests) }
    }

    /// Has images opened by threads of this process, which then needs the privileges for that: for programs that embed the backends.
    ///
    /// # Errors
    /// A socket or a thread cannot be made.
    pub fn in_this_process() -> io::Result<Opener> {
        let (requests, served) = packet::pair()?;
        let serve = move || {
            if let Err(error) = server::serve(&served, std::process::id(), &ImageDirs::default()) {
                tracing::error!(%error, "images are no longer opened");
            }
        };
        std::thread::Builder::new().name("opener".into()).spawn(serve)?;
        Ok(Opener::new(requests))
    }

    /// Opens a disk, and waits for that as long as it takes.
    ///
    /// # Errors
    /// Why it was not opened. It may pass if what opens images has ended.
    pub fn open(&self, spec: &Spec) -> Result<Opened, Refusal> {
        let (path, format) = match &spec.source {
            Source::Raw(path) => (path, Format::Raw),
            Source::Qcow2(path) => (path, Format::Qcow2),
            // It is no file.
            Source::Null(_) | Source::Ram(_) | Source::Empty => {
                let opened = blkback::engine::open(spec);
                return opened.map(|disk| (disk, None)).map_err(|e| Refusal::new(e, |_| (None, Vec::new())));
            }
        };
        let &Spec { mode, direct, user, own_loop, cdrom, discard, .. } = spec;
        let access = Access { mode, direct, user, own_loop, server: None };
        match self.ask(path, format, &access) {
            Ok(Some((Reply::Refused(refusal), _))) => Err(refusal),
            Ok(Some((Reply::Opened(layers), fds))) => {
                let mut fds = fds.into_iter();
                let layers: Option<Vec<_>> =
                    layers.into_iter().map(|layer| layer.received(&mut fds)).collect();
                let mut layers = layers.filter(|_| fds.next().is_none()).unwrap_or_default();
                let top = layers.first().ok_or_else(|| lost(path, "found no image with the answer"))?;
                let file = top.image.file().metadata().ok().as_ref().map(file_id);
                let disk: Arc<dyn Disk> = match format {
                    Format::Raw => {
                        let image = layers.swap_remove(0).image;
                        Arc::new(FileDisk::new(image).with_cdrom(cdrom).with_discard(discard))
                    }
                    Format::Qcow2 => {
                        let disk = Qcow2Disk::new(OpenChain { layers });
                        let disk = disk.map_err(|error| Refusal::failed(Failure::from(error)))?;
                        Arc::new(disk.with_cdrom(cdrom).with_discard(discard))
                    }
                };
                Ok((disk, file))
            }
            Ok(None) => Err(lost(path, "it has ended, or dropped the request")),
            Err(error) => Err(lost(path, error)),
        }
    }

    /// Sends a request and waits for the answer; `None` if there is none.
    fn ask(&self, path: &Path, format: Format, access: &Access) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        let (answer, answers) = packet::pair()?;
        packet::send(&*self.requests, &Request::new(path, format, access), [answers.as_fd()])?;
        // Only the other process has it from here on: its end is the end of the wait.
        drop(answers);
        packet::receive(&answer)
    }
}

/// The refusal of an image for which there is no answer.
fn lost(path: &Path, why: impl std::fmt::Display) -> Refusal {
    let what = format!("params: {}: asking the process that opens images: {why}", path.display());
    Refusal::failed(Failure { may_pass: true, ..Failure::new(Errno::EIO as i32, what) })
}

/// The device and inode numbers of a file.
fn file_id(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}
