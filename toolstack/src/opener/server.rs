//! Opens images for another process: a loop that reads requests, and a thread for each, since an open may take as long as it likes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use blkback::engine::format::{Format, OpenChain, OpenLayer};
use blkback::engine::{Access, OpenError, OpenImage};
use nix::errno::Errno;
use xenbus::driver::Failure;

use super::image_dirs::ImageDirs;
use super::protocol::{Ask, Images, Layers, Refusal, Reply, Request, What};
use super::{holders, packet};
use crate::image::{Geometry, chain};

/// Openings at the same time: each device has one at most, and of those that take long there are few, unless a file server is gone.
const MAX_OPENINGS: usize = 1024;

/// Answers the requests that come over `socket`, until its other end is closed. `server` is the process that does the images' I/O;
/// they are opened in `dirs` alone. `policy` is the only file that is opened beside them.
///
/// # Errors
/// The socket cannot be read from.
pub(super) fn serve(
    socket: &OwnedFd,
    server: u32,
    dirs: &ImageDirs,
    policy: Option<&Path>,
) -> io::Result<()> {
    // One clone for each opening that goes on.
    let openings = Arc::new(());
    loop {
        let (asked, fds) = match packet::receive::<Ask>(socket) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            Err(error) if is_lasting(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a request to open an image is lost");
                continue;
            }
        };
        let Some(answer) = fds.into_iter().next() else { continue };
        let request = match asked {
            Ask::Image(request) => request,
            Ask::Policy => {
                let policy = policy.map(Path::to_owned);
                let pass = move || pass_policy(policy.as_deref(), &answer);
                if let Err(error) = std::thread::Builder::new().name("open".into()).spawn(pass) {
                    tracing::warn!(%error, "a request to open the policy is lost");
                }
                continue;
            }
        };
        let Some(access) = request.access(server) else { continue };
        let opening = Opening { request, access, dirs: dirs.clone(), answer: Arc::new(answer) };
        if Arc::strong_count(&openings) > MAX_OPENINGS {
            opening.refuse_for_now(&format!("{MAX_OPENINGS} other images are being opened"));
            continue;
        }
        let goes_on = openings.clone();
        let of_thread = opening.clone();
        let started = std::thread::Builder::new().name("open".into()).spawn(move || {
            of_thread.run();
            drop(goes_on);
        });
        if let Err(error) = started {
            opening.refuse_for_now(&format!("starting a thread: {error}"));
        }
    }
}

/// Whether an error of receiving is the socket's, not of one message.
fn is_lasting(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| errno != Errno::EMFILE as i32)
}

/// Opens the policy, and passes it on for reading.
fn pass_policy(path: Option<&Path>, answer: &OwnedFd) {
    let opened = match path {
        Some(path) => open_policy(path).map_err(|e| format!("{}: opening the policy: {e}", path.display())),
        None => Err("there is no policy".to_owned()),
    };
    // It is lost only if nobody waits for it.
    let _ = match opened {
        Ok(file) => packet::send(answer, &Reply::Policy, [file.as_fd()]),
        Err(what) => {
            let failure = Failure::new(Errno::ENOENT as i32, what);
            packet::send(answer, &Reply::Refused(Refusal::failed(failure)), [])
        }
    };
}

fn open_policy(path: &Path) -> io::Result<File> {
    // A FIFO would wait for a writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("found no regular file")),
    }
}

/// An image to open.
#[derive(Clone, Debug)]
struct Opening {
    request: Request,
    access: Access,
    dirs: ImageDirs,
    /// Where the answer is sent. Its other end is closed if nobody waits for it any more.
    answer: Arc<OwnedFd>,
}

impl Opening {
    /// Opens the image and answers. What nobody waits for is closed again.
    fn run(&self) {
        let opened = match self.open() {
            Ok(opened) => opened,
            Err(refusal) => return self.refuse(refusal),
        };
        let reply = Reply::Opened(Images::new(&opened));
        let descriptors = opened.layers.iter().flat_map(|layer| layer.image.descriptors());
        match packet::send(&*self.answer, &reply, descriptors) {
            Ok(()) => opened.layers.into_iter().for_each(|layer| layer.image.leave()),
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(error) => {
                tracing::warn!(path = %self.request.path.display(), %error, "failed to pass an image on");
            }
        }
    }

    /// Opens what is asked for; of an overlay also the numbers of the file below it.
    fn open(&self) -> Result<Layers, Refusal> {
        let path = &self.request.path;
        let server = self.access.server.unwrap_or_else(std::process::id);
        let may_open = |path: &Path, file: BorrowedFd<'_>| self.dirs.check(path, file);
        let refused = |error| Refusal::new(error, |path| holders::of_image(path, server));
        let chain = match self.request.what {
            What::Raw => {
                let image = OpenImage::open(path, self.access).map_err(refused)?;
                for file in image.descriptors() {
                    may_open(path, file).map_err(|what| refused(OpenError::Denied { what }))?;
                }
                let layers = vec![OpenLayer { image, format: Format::Raw }];
                return Ok(Layers { layers, below: None });
            }
            What::Chain => OpenChain::open(path, self.access, &may_open),
            What::Overlay => OpenChain::open_alone(path, self.access, &may_open),
        };
        let layers = chain.map_err(refused)?.layers;
        let overlay = layers.first().filter(|_| self.request.what == What::Overlay);
        let below = overlay.map_or(Ok(None), |layer| below(path, layer.image.file()));
        let below = below.map_err(|what| refused(OpenError::Format { path: path.clone(), what }))?;
        Ok(Layers { layers, below })
    }

    fn refuse_for_now(&self, why: &str) {
        let what = format!("params: {}: {why}", self.request.path.display());
        self.refuse(Refusal::failed(Failure::in_use_for_now(what)));
    }

    fn refuse(&self, refusal: Refusal) {
        // It is lost only if nobody waits for it.
        let _ = packet::send(&*self.answer, &Reply::Refused(refusal), []);
    }
}

/// The device and inode numbers of the file that a qcow2 image names as below it.
fn below(path: &Path, file: &File) -> Result<Option<(u64, u64)>, String> {
    let read = || chain::backing(path, &Geometry::read(path, file)?);
    let Some((below, _)) = read().map_err(|e| e.to_string())? else { return Ok(None) };
    let found = std::fs::metadata(&below).map_err(|e| format!("{}: {e}", below.display()))?;
    Ok(Some((found.dev(), found.ino())))
}
