//! The thread of dom0 that answers on the control socket. The drivers do not depend on it.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::devices::Devices;
use super::server::{Limits, serve};
use super::socket::ControlSocket;
use crate::dir::Dir;
use crate::error::chain;

/// How often binding the socket is tried again, in milliseconds.
const RETRY_MS: u16 = 500;

/// The control socket, and what is answered there.
pub struct ControlService<'d> {
    dir: &'d Dir,
    devices: Devices,
    /// `None` while it cannot be bound: another dom0 serves it, whose successor this one may be.
    socket: Option<ControlSocket>,
}

impl<'d> ControlService<'d> {
    /// Binds the control socket of a machine. If that fails, it is logged, and tried again while the service runs.
    pub fn new(dir: &'d Dir, devices: Devices) -> ControlService<'d> {
        let bound = ControlSocket::bind(dir);
        let socket = bound.inspect_err(|error| {
            tracing::warn!(error = %chain(error), "cannot serve the control socket yet");
        });
        ControlService { dir, devices, socket: socket.ok() }
    }

    /// Answers until `stop` becomes readable.
    pub fn run(mut self, stop: BorrowedFd<'_>) {
        while self.socket.is_none() {
            let mut fds = [PollFd::new(stop, PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(RETRY_MS));
            if fds[0].any().unwrap_or(false) {
                return;
            }
            self.socket = ControlSocket::bind(self.dir).ok();
        }
        let Some(socket) = &self.socket else { return };
        tracing::info!(socket = %self.dir.control().display(), "answering");
        let served = serve(&socket.listener, &|line| self.devices.answer(line), Limits::default(), stop);
        if let Err(error) = served {
            tracing::error!(%error, "failed to wait for clients: the control socket is no longer served");
        }
    }
}
