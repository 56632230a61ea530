//! Starts the process that opens images, as a child of dom0, and is its whole life.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use tracing::level_filters::LevelFilter;

use super::client::Opener;
use super::image_dirs::ImageDirs;
use super::{packet, server};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::process::{self, ChildProcess, ProcessOptions};
use crate::sandbox::{self, Role};

/// How long the process may take to report that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the process may take to exit once its socket is closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The process that opens images. It ends when the last [`Opener`] and this are dropped, and with its parent.
#[derive(Debug)]
pub struct OpenerProcess {
    /// `None` once this is being dropped.
    process: Option<ChildProcess>,
    /// Readable once it has exited.
    exited: OwnedFd,
    requests: OwnedFd,
}

impl OpenerProcess {
    /// Starts it, by the thread that lives as long as this process, and while this process has its privileges. Images are opened
    /// below `image_dirs` alone, if there are any, and beside them `policy`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be started.
    pub fn start(
        dir: &Dir,
        image_dirs: &[PathBuf],
        policy: Option<&Path>,
        sandbox: bool,
    ) -> Result<OpenerProcess> {
        let failed = |e| Error::io("starting the process that opens images", e);
        let (requests, served) = packet::pair().map_err(|e| failed(e.into()))?;
        let mut command = process::command(dir, &ProcessOptions { die_with_parent: true, log: None })?;
        if !sandbox {
            command.arg("--no-sandbox");
        }
        match LevelFilter::current() {
            LevelFilter::TRACE => drop(command.arg("-vvv")),
            LevelFilter::DEBUG => drop(command.arg("-vv")),
            _ => {}
        }
        // Whoever waits for dom0's line on standard output waits for dom0 alone.
        command.arg("opener");
        for images in image_dirs {
            command.arg("--images").arg(images);
        }
        if let Some(policy) = policy {
            command.arg("--policy").arg(policy);
        }
        command.stdin(Stdio::from(served)).stdout(Stdio::null());
        let process = process::spawn(command)?;
        let exited = process.pidfd().ok_or_else(|| failed(io::Error::other("it was reaped")))?;
        Ok(OpenerProcess { process: Some(process), exited, requests })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Other`] if it exits before, or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<Opener> {
        let failed = |e| Error::io("waiting for the process that opens images", e);
        let deadline = Instant::now() + READY_TIMEOUT;
        let left = || PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
        // A signal ends one wait, and not the start.
        while !process::wait_first(&[self.requests.as_fd()], left().unwrap_or(PollTimeout::MAX))? {
            if Instant::now() >= deadline {
                return Err(Error::other("the process that opens images is not ready in time"));
            }
        }
        match packet::receive::<String>(&self.requests).map_err(failed)? {
            Some(_) => Ok(Opener::new(self.requests.try_clone().map_err(failed)?)),
            None => Err(self.end()),
        }
    }

    /// A descriptor that is readable once it has exited.
    pub fn exited(&self) -> &impl AsFd {
        &self.exited
    }

    /// The error that it has exited, which it never does by itself.
    pub fn end(&mut self) -> Error {
        let status = self.process.as_mut().and_then(|process| {
            // Its socket is closed before it has exited.
            process.wait(EXIT_TIMEOUT);
            process.exit_status().ok().flatten()
        });
        let status = status.unwrap_or_else(|| "it does not answer".into());
        Error::Other(format!("the process that opens images has ended: {status}"))
    }
}

impl Drop for OpenerProcess {
    /// Does not wait: a thread of it may be in an open that never ends.
    fn drop(&mut self) {
        self.process.take().into_iter().for_each(ChildProcess::detach);
    }
}

/// Is the process that opens images for its parent, whose end of the socket is the other end of standard input.
///
/// # Errors
/// A directory of images does not exist, the sandbox cannot be entered, or the socket fails.
pub fn run(dir: &Dir, image_dirs: &[PathBuf], policy: Option<&Path>, sandbox: bool) -> Result<()> {
    let failed = |e| Error::io("serving the process that started this one", e);
    process::leave_stopping_to_parent()?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let image_dirs = ImageDirs::resolve(image_dirs)?;
    let server = nix::unistd::getppid().as_raw().cast_unsigned();
    // Who looks for the holder of a lock finds the program's name, as its parent has it.
    if let Some(name) = super::holders::name(server).and_then(|name| std::ffi::CString::new(name).ok()) {
        nix::sys::prctl::set_name(&name).map_err(|e| Error::io("naming this process", e))?;
    }
    let sandbox = sandbox::enter(Role::Opener, dir.path(), sandbox)?;
    tracing::info!(%sandbox, "opening images for dom0");
    packet::send(&socket, &"ready", []).map_err(failed)?;
    server::serve(&socket, server, &image_dirs, policy).map_err(failed)
}
