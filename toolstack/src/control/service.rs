//! The thread of dom0 that answers on the control socket. The drivers do not depend on it.

use std::os::fd::BorrowedFd;

use bridge::{CaptureFilter, CaptureOptions};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use serde_json::json;

use super::devices::Devices;
use super::protocol::{CaptureQuery, Request, encode_reply};
use super::server::{Answer, Limits, serve};
use super::socket::ControlSocket;
use crate::capture::{self, Captures, Wanted};
use crate::dir::Dir;
use crate::error::chain;

/// How often binding the socket is tried again, in milliseconds.
const RETRY_MS: u16 = 500;

/// The control socket, and what is answered there.
pub struct ControlService<'d> {
    dir: &'d Dir,
    devices: Devices,
    captures: Captures,
    /// `None` while it cannot be bound: another dom0 serves it, whose successor this one may be.
    socket: Option<ControlSocket>,
}

impl<'d> ControlService<'d> {
    /// Binds the control socket of a machine. If that fails, it is logged, and tried again while the service runs.
    pub fn new(dir: &'d Dir, devices: Devices, captures: Captures) -> ControlService<'d> {
        let bound = ControlSocket::bind(dir);
        let socket = bound.inspect_err(|error| {
            tracing::warn!(error = %chain(error), "cannot serve the control socket yet");
        });
        ControlService { dir, devices, captures, socket: socket.ok() }
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
        let served = serve(&socket.listener, &|line| self.answer(line), Limits::default(), stop);
        if let Err(error) = served {
            tracing::error!(%error, "failed to wait for clients: the control socket is no longer served");
        }
    }

    fn answer(&self, line: &[u8]) -> Answer {
        let reply = match Request::parse(line) {
            Ok(Request::Stats(query)) => self.devices.stats(&query),
            Ok(Request::Totals(query)) => Ok(self.devices.totals(&query)),
            Ok(Request::Image(query)) => self.devices.image(&query),
            Ok(Request::Bridge(query)) => self.devices.bridge(query),
            Ok(Request::Capture(query)) => match self.capture(query) {
                Ok(answer) => return answer,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        Answer::Reply(encode_reply(reply))
    }

    /// Begins a capture, whose client has a thread of its own.
    fn capture(&self, query: CaptureQuery) -> Result<Answer, String> {
        let session = self.captures.begin(wanted(query)?)?;
        let reply = encode_reply(Ok(json!({"port": session.port()})));
        Ok(Answer::TakeOver(Box::new(move |stream| {
            let thread = std::thread::Builder::new().name("capture".into());
            let spawned = thread.spawn(move || match session.run(stream, &reply) {
                Ok(()) => tracing::debug!("a capture has ended"),
                Err(error) => tracing::debug!(%error, "the client of a capture is gone"),
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "failed to start a capture's thread");
            }
        })))
    }
}

fn wanted(query: CaptureQuery) -> Result<Wanted, String> {
    let CaptureQuery { domid, devid, snaplen, host, port, ether_type, count } = query;
    let host = host.map(|text| capture::host(&text).map_err(|error| format!("host: {error}"))).transpose()?;
    let filter = CaptureFilter { host, port, ether_type };
    let options = CaptureOptions { filter, ..CaptureOptions::default() };
    let snaplen = snaplen.map_or(options.snaplen, |snaplen| snaplen.clamp(1, options.snaplen));
    Ok(Wanted { domid, devid, options: CaptureOptions { snaplen, ..options }, count })
}
