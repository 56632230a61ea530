// Not a core: does I/O or calls a hypervisor.

//! The client's side of a stream: sends a request, receives its reply, queues the watch events in between.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use event_loop::Stream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::SockType};
use ring_abi::xs_wire::{MessageType, PAYLOAD_MAX, XsError};

use super::error::{Error, Result};
use super::event::{Events, WatchEvent};
use super::request::{Request, check_string};
use crate::wire::{Decoder, Message};

/// Requests sent over a socket before their replies are awaited, at most, and by one write: of 4 KiB each, or with replies of as
/// much, they fit a socket's buffer (`net.core.wmem_default`, 208 KiB).
const IN_FLIGHT: usize = 32;

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    events: Events,
    next_id: u32,
    /// Requests sent before their replies are awaited, at most.
    in_flight: usize,
    pub(super) reply_timeout: Option<Duration>,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>) -> Connection {
        let decoder = Decoder::default();
        let events = Events::default();
        // Linux's /dev/xen/xenbus shares a ring of 1 KiB with the kernel's own requests; Xen's xenstored (4.17) ended where several of one
        // process were in it.
        let in_flight = if getsockopt(&stream, SockType).is_ok() { IN_FLIGHT } else { 1 };
        Connection { stream, decoder, events, next_id: 1, in_flight, reply_timeout: None }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn forget(&mut self, path: &str, token: &str) {
        self.events.forget(path, token);
    }

    pub(super) fn forget_all(&mut self) {
        self.events.clear();
    }

    /// Sends a request outside any transaction whose payload is NUL-terminated strings, and returns its reply.
    pub(super) fn strings(&mut self, kind: MessageType, path: &str, strings: &[&str]) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        for string in strings {
            check_string(kind, string)?;
            payload.extend_from_slice(string.as_bytes());
            payload.push(0);
        }
        self.request(kind, 0, path, &payload)
    }

    /// Sends a request and waits for its reply's payload. `path` is for the texts of errors.
    pub(super) fn request(
        &mut self,
        kind: MessageType,
        tx_id: u32,
        path: &str,
        payload: &[u8],
    ) -> Result<Vec<u8>> {
        let req_id = self.post(tx_id, [(kind, path, payload)])?[0];
        let deadline = self.reply_timeout.map(|t| Instant::now() + t);
        let (_, reply) = self.reply(&[req_id], deadline, (kind, path))?;
        payload_of(kind, path, reply)
    }

    /// Sends requests, several before their replies are awaited, and returns the replies in the requests' order.
    ///
    /// # Errors
    /// The connection's. Errors that the store replies with are in the list.
    pub(super) fn request_each(&mut self, tx_id: u32, requests: &[Request]) -> Result<Vec<Result<Vec<u8>>>> {
        let mut all = Vec::with_capacity(requests.len());
        for requests in requests.chunks(self.in_flight) {
            let ids = self.post(tx_id, requests.iter().map(|r| (r.kind, r.path.as_str(), &r.payload[..])))?;
            let mut replies: Vec<Option<Result<Vec<u8>>>> = ids.iter().map(|_| None).collect();
            let deadline = self.reply_timeout.map(|t| Instant::now() + t);
            while let Some(next) = replies.iter().position(Option::is_none) {
                let awaited = &requests[next];
                let (number, reply) = self.reply(&ids, deadline, (awaited.kind, &awaited.path))?;
                let Request { kind, path, .. } = &requests[number];
                let reply = match payload_of(*kind, path, reply) {
                    Err(error) if error.store_error().is_none() => return Err(error),
                    reply => reply,
                };
                replies[number] = Some(reply);
            }
            all.extend(replies.into_iter().flatten());
        }
        Ok(all)
    }

    /// Sends requests, of a type, a path and a payload each, by one write; returns their numbers. Over Linux's /dev/xen/xenbus,
    /// which takes one message a write, the caller sends one at a time.
    fn post<'r>(
        &mut self,
        tx_id: u32,
        requests: impl IntoIterator<Item = (MessageType, &'r str, &'r [u8])>,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut bytes = Vec::new();
        for (kind, path, payload) in requests {
            if payload.len() > PAYLOAD_MAX {
                let what = "more bytes than a message may hold (4096)";
                return Err(Error::Request { kind, path: path.into(), what });
            }
            ids.push(self.next_id);
            bytes.extend(Message::new(kind, self.next_id, tx_id, payload.to_vec()).to_bytes());
            self.next_id = self.next_id.wrapping_add(1).max(1);
        }
        self.send(&bytes)?;
        Ok(ids)
    }

    /// Waits for the next reply to one of these requests; returns which one of them it answers. `what` is for the text of an error.
    fn reply(
        &mut self,
        ids: &[u32],
        deadline: Option<Instant>,
        what: (MessageType, &str),
    ) -> Result<(usize, Message)> {
        loop {
            let Some(message) = self.receive(deadline)? else {
                let (kind, path) = what;
                let after = self.reply_timeout.unwrap_or_default();
                return Err(Error::TimedOut { kind, path: path.into(), after });
            };
            match ids.iter().position(|id| *id == message.header.req_id) {
                Some(number) => return Ok((number, message)),
                None => tracing::debug!(req_id = message.header.req_id, "reply to a request that timed out"),
            }
        }
    }

    /// The next event, waiting for it until `deadline` (`None`: without limit).
    pub(super) fn event(&mut self, deadline: Option<Instant>) -> Result<Option<WatchEvent>> {
        loop {
            // A reply here belongs to a request that timed out.
            while self.decode()?.is_some() {}
            if let Some(event) = self.events.pop()? {
                return Ok(Some(event));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// The next message that is not a watch event, or `None` at the deadline.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Message>> {
        loop {
            if let Some(message) = self.decode()? {
                return Ok(Some(message));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Decodes messages from the bytes read: queues watch events, returns the first other message.
    fn decode(&mut self) -> Result<Option<Message>> {
        while let Some(message) = self.decoder.take()? {
            if message.kind() != Some(MessageType::WatchEvent) {
                return Ok(Some(message));
            }
            self.events.push(WatchEvent::parse(&message.payload)?);
        }
        Ok(None)
    }

    /// Reads from the stream once; `false` at the deadline.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let mut bytes = [0; 4096];
        loop {
            if !self.wait(PollFlags::POLLIN, deadline)? {
                return Ok(false);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => {
                    self.decoder.push(&bytes[..n]);
                    return Ok(true);
                }
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(closed(e)),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, None)?;
                }
                Err(e) => return Err(closed(e)),
            }
        }
        Ok(())
    }

    /// Waits until the stream is ready; `false` at the deadline.
    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => round_up(deadline.saturating_duration_since(Instant::now())),
            };
            let mut fds = [PollFd::new(self.stream.as_fd(), flags)];
            match poll(&mut fds, timeout) {
                Ok(0) if deadline.is_some_and(|d| d > Instant::now()) => {}
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::Io(e.into())),
            }
        }
    }
}

/// A timeout of whole milliseconds, rounded up: rounded down, the last millisecond would be spent polling.
fn round_up(duration: Duration) -> PollTimeout {
    PollTimeout::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

fn closed(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Error::Closed,
        _ => Error::Io(error),
    }
}

/// The payload of a reply, or the error that it names.
fn payload_of(kind: MessageType, path: &str, reply: Message) -> Result<Vec<u8>> {
    if reply.kind() == Some(kind) {
        return Ok(reply.payload);
    }
    if reply.kind() != Some(MessageType::Error) {
        return Err(Error::Protocol(format!("{kind:?} was answered by type {}", reply.header.kind)));
    }
    let name = reply.payload.strip_suffix(b"\0").unwrap_or(&reply.payload);
    let name = String::from_utf8_lossy(name);
    match XsError::from_name(&name) {
        Some(error) => Err(Error::Store { kind, path: path.into(), error }),
        None => Err(Error::Protocol(format!("an error named {name:?}"))),
    }
}
