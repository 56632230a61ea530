//! dom0's end: asks the process that opens images, and makes disks of what it answers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use blkback::Disk;
use blkback::engine::format::{OpenChain, Qcow2Disk};
use blkback::engine::spec::Source;
use blkback::engine::{Access, FileDisk, Mode, OpenError, Spec};
use nix::errno::Errno;
use xenbus::driver::Failure;

use super::image_dirs::ImageDirs;
use super::protocol::{Ask, Layers, Refusal, Reply, Request, What};
use super::{packet, server};
use crate::machine::process;

/// What opens images: another process, or threads of this one.
#[derive(Clone, Debug)]
pub struct Opener {
    requests: Arc<OwnedFd>,
}

/// An open disk; of an image, and those below it, the device and inode numbers of their files.
pub type Opened = (Arc<dyn Disk>, Vec<(u64, u64)>);

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
            if let Err(error) = server::serve(&served, std::process::id(), &ImageDirs::default(), None) {
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
        let (path, what) = match &spec.source {
            Source::Raw(path) => (path, What::Raw),
            Source::Qcow2(path) => (path, What::Chain),
            Source::Null(_) | Source::Ram(_) | Source::Empty => {
                // It is no file.
                return blkback::engine::open(spec).map(|disk| (disk, Vec::new())).map_err(refused);
            }
        };
        let &Spec { mode, direct, user, own_loop, cdrom, discard, .. } = spec;
        let access = Access { mode, direct, user, own_loop, server: None };
        let Layers { mut layers, .. } = self.layers(path, what, access)?;
        let files = layers.iter().filter_map(|layer| layer.image.file().metadata().ok());
        let files = files.map(|file| file_id(&file)).collect();
        let disk: Arc<dyn Disk> = match what {
            What::Raw => {
                let image = layers.swap_remove(0).image;
                Arc::new(FileDisk::new(image).with_cdrom(cdrom).with_discard(discard))
            }
            What::Chain | What::Overlay => {
                let disk = Qcow2Disk::new(OpenChain { layers }).map_err(refused)?;
                Arc::new(disk.with_cdrom(cdrom).with_discard(discard))
            }
        };
        Ok((disk, files))
    }

    /// Opens a qcow2 image for writing that is to be over one that this process has. Returns it alone, and the device and inode numbers of
    /// the image that it names as below it.
    ///
    /// # Errors
    /// As [`Opener::open`].
    pub fn open_overlay(
        &self,
        path: &Path,
        user: Option<u64>,
    ) -> Result<(OpenChain, Option<(u64, u64)>), Refusal> {
        let access = Access { mode: Mode::Write, direct: true, user, own_loop: None, server: None };
        let Layers { layers, below } = self.layers(path, What::Overlay, access)?;
        Ok((OpenChain { layers }, below))
    }

    /// Has images opened; there is one at least.
    fn layers(&self, path: &Path, what: What, access: Access) -> Result<Layers, Refusal> {
        match self.ask(&Ask::Image(Request::new(path, what, &access))) {
            Ok(Some((Reply::Refused(refusal), _))) => Err(refusal),
            Ok(Some((Reply::Opened(images), fds))) => {
                images.received(fds).ok_or_else(|| lost(path, "found no image with the answer"))
            }
            Ok(Some((Reply::Policy, _))) => Err(lost(path, "found a policy")),
            Ok(None) => Err(lost(path, "it has ended, or dropped the request")),
            Err(error) => Err(lost(path, error)),
        }
    }

    /// Sends a request and waits for the answer; `None` if there is none.
    fn ask(&self, asked: &Ask) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        packet::receive(&self.send(asked)?)
    }

    /// Sends a request; returns the socket of its answer.
    fn send(&self, asked: &Ask) -> io::Result<OwnedFd> {
        let (answer, answers) = packet::pair()?;
        // Only the other process has it afterwards: its end is the end of the wait.
        packet::send(&*self.requests, asked, [answers.as_fd()])?;
        Ok(answer)
    }

    /// Has the policy opened for reading; `None` if `stop` becomes readable first.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn policy(&self, stop: BorrowedFd<'_>) -> Result<Option<File>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("asking the process that opens images: {error}");
        let answer = self.send(&Ask::Policy).map_err(|e| failed(&e))?;
        process::wait_any(&[answer.as_fd(), stop]).map_err(|e| failed(&e))?;
        if process::is_readable(&[stop]).map_err(|e| failed(&e))? {
            return Ok(None);
        }
        match packet::receive(&answer).map_err(|e| failed(&e))? {
            Some((Reply::Policy, fds)) => {
                let file = fds.into_iter().next().ok_or_else(|| failed(&"found no file with the answer"))?;
                Ok(Some(File::from(file)))
            }
            Some((Reply::Refused(Refusal::Failed { what, .. }), _)) => Err(what),
            Some(_) => Err(failed(&"found another answer")),
            None => Err(failed(&"it has ended, or dropped the request")),
        }
    }
}

/// The refusal of what was opened in this process, or is no disk once it is open.
fn refused(error: OpenError) -> Refusal {
    Refusal::new(error, |_| (None, Vec::new()))
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
