//! One client's connection without I/O: bytes in, requests out; outcomes in, bytes out. Its memory is bounded whatever
//! the client sends: unparsed input, requests in flight, and output that the client has not read.

use std::collections::HashMap;

use super::handshake::{Handshake, Step};
use super::output::Output;
use super::proto::{FUA, MAX_PAYLOAD, NO_HOLE, REPLY, REQUEST_LEN, Request, command, errno};
use super::{Export, Op, Outcome};

/// Requests that one client may have in flight.
const MAX_PENDING: usize = 256;
/// Bytes of requests in flight and of unsent output, beyond which nothing more is read from a client: more than a ring
/// has in flight, so that it is always full.
const MAX_BYTES: usize = 8 << 20;
/// Memory for input that is kept for further requests.
const MAX_SPARE: usize = 1 << 20;

/// The state of a connection.
///
/// ```
/// use toolstack::nbd::{Export, Op, Session, proto};
///
/// let export = Export { name: "xvda".into(), size: 1 << 20, block: 512, read_only: false, trim: false };
/// let mut session = Session::new();
/// session.receive(&3u32.to_be_bytes());
/// let option = [&proto::IHAVEOPT.to_be_bytes()[..], &proto::option::EXPORT_NAME.to_be_bytes(), &[0; 4]];
/// session.receive(&option.concat());
/// let cookie = 7u64.to_be_bytes();
/// let offset = 512u64.to_be_bytes();
/// let len = 1024u32.to_be_bytes();
/// session.receive(&[&proto::REQUEST.to_be_bytes()[..], &[0; 4], &cookie, &offset, &len].concat());
/// assert_eq!(session.next(&export, 1), Some(Op::Read { offset: 512, len: 1024 }));
/// session.sent(session.unsent().len());
/// assert!(session.complete(1, Ok(vec![0; 1024])));
/// assert_eq!(session.unsent().len(), 16 + 1024);
/// ```
#[derive(Debug)]
pub struct Session {
    handshake: Option<Handshake>,
    input: Vec<u8>,
    /// How much of `input` has been consumed.
    consumed: usize,
    output: Output,
    /// Requests in flight by id: the client's cookie, and the bytes that count towards the bound.
    pending: HashMap<u64, (u64, usize)>,
    bytes: usize,
    ended: bool,
}

impl Session {
    /// Creates the session of a new client; the greeting is its first output.
    pub fn new() -> Session {
        let mut greeting = Vec::new();
        let handshake = Some(Handshake::new(&mut greeting));
        let mut output = Output::default();
        output.push(greeting);
        Session {
            handshake,
            input: Vec::new(),
            consumed: 0,
            output,
            pending: HashMap::new(),
            bytes: 0,
            ended: false,
        }
    }

    /// Appends bytes of the client to the input, which [`Session::next`] parses.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.ended {
            return;
        }
        // The rest is moved to the front only once the consumed part is larger: each byte is moved at most once.
        if self.consumed > self.input.len() / 2 {
            self.input.drain(..self.consumed);
            self.consumed = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// Whether more should be read from the client now.
    pub fn wants_input(&self) -> bool {
        !self.ended && self.has_room() && self.unparsed().len() < MAX_PAYLOAD as usize + REQUEST_LEN
    }

    fn unparsed(&self) -> &[u8] {
        &self.input[self.consumed..]
    }

    fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING && self.bytes + self.output.len() < MAX_BYTES
    }

    /// Whether the connection can be closed: it ended, no request is in flight and all output is sent.
    pub fn is_finished(&self) -> bool {
        self.ended && self.pending.is_empty() && self.output.is_empty()
    }

    /// Whether the client has ended the session, or was found to be invalid.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Says whether as many clients as may, this number, have the export open, so that this one cannot open it now.
    pub fn set_full(&mut self, full: Option<usize>) {
        self.handshake.iter_mut().for_each(|handshake| handshake.set_full(full));
    }

    /// Whether the handshake is over, and requests follow.
    pub fn is_negotiated(&self) -> bool {
        self.handshake.is_none()
    }

    /// Ends the session: the client sends nothing more.
    pub fn end(&mut self) {
        self.ended = true;
        self.consumed = self.input.len();
    }

    /// Parses the next request for the blocks, which completes with `id`; `None` if more input is needed or too much
    /// is in flight. Handshake and invalid requests are answered here.
    pub fn next(&mut self, export: &Export, id: u64) -> Option<Op> {
        while !self.ended && self.has_room() {
            if self.handshake.is_some() {
                self.advance_handshake(export)?;
                continue;
            }
            let header = self.unparsed().first_chunk()?;
            let Some(request) = Request::parse(header) else {
                self.end();
                return None;
            };
            match self.take(export, request)? {
                Ok(op) => {
                    let bytes = match request.kind {
                        command::READ | command::WRITE => request.len as usize,
                        _ => 0,
                    };
                    self.bytes += bytes;
                    self.pending.insert(id, (request.cookie, bytes));
                    return Some(op);
                }
                Err(0) => return None,
                Err(error) => self.reply(request.cookie, error, Vec::new()),
            }
        }
        None
    }

    /// Processes one message of the handshake; `None` if more input is needed.
    fn advance_handshake(&mut self, export: &Export) -> Option<()> {
        let handshake = self.handshake.as_mut()?;
        let mut replies = Vec::new();
        let step = handshake.step(export, &self.input[self.consumed..], &mut replies);
        self.output.push(replies);
        match step {
            Step::NeedMore => return None,
            Step::Consumed(len) => self.consumed += len,
            Step::Transmission(len) => {
                self.consumed += len;
                self.handshake = None;
            }
            Step::Close => self.end(),
        }
        Some(())
    }

    /// Takes a request and its payload off the input. `None` if the payload is incomplete; an errno if the request is
    /// invalid, 0 if it has no reply.
    fn take(&mut self, export: &Export, request: Request) -> Option<Result<Op, u32>> {
        let payload = if request.kind == command::WRITE { request.len as usize } else { 0 };
        if payload > MAX_PAYLOAD as usize {
            // The payload is too long to be skipped.
            self.end();
            return None;
        }
        let data = self.unparsed().get(REQUEST_LEN..REQUEST_LEN + payload)?.to_vec();
        self.consumed += REQUEST_LEN + payload;
        if self.consumed == self.input.len() && self.input.capacity() > MAX_SPARE {
            self.input = Vec::new();
            self.consumed = 0;
        }
        if request.kind == command::DISC {
            self.end();
            return Some(Err(0));
        }
        Some(check(export, &request).map(|()| {
            let Request { offset, len, .. } = request;
            let durable = request.flags & FUA != 0;
            match request.kind {
                command::READ => Op::Read { offset, len },
                command::FLUSH => Op::Flush,
                command::TRIM => Op::Trim { offset, len, durable },
                command::WRITE_ZEROES => Op::WriteZeroes { offset, len, durable },
                _ => Op::Write { offset, data, durable },
            }
        }))
    }

    /// Whether request `id` is this client's, and in flight.
    pub fn has(&self, id: u64) -> bool {
        self.pending.contains_key(&id)
    }

    /// Replies to request `id`; `false` if it is not this client's.
    pub fn complete(&mut self, id: u64, outcome: Outcome) -> bool {
        let Some((cookie, bytes)) = self.pending.remove(&id) else { return false };
        self.bytes -= bytes;
        match outcome {
            Ok(data) => self.reply(cookie, 0, data),
            Err(error) => self.reply(cookie, wire_errno(error), Vec::new()),
        }
        true
    }

    fn reply(&mut self, cookie: u64, error: u32, data: Vec<u8>) {
        self.output.push_copy(&REPLY.to_be_bytes());
        self.output.push_copy(&error.to_be_bytes());
        self.output.push_copy(&cookie.to_be_bytes());
        self.output.push(data);
    }

    /// Returns the first part of the output that has not been sent; empty only if all is.
    pub fn unsent(&self) -> &[u8] {
        self.output.first()
    }

    /// Removes `bytes` bytes from the start of [`Session::unsent`], which were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.output.pop(bytes);
    }
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

/// Checks that a request may be submitted to the blocks; an errno if not.
fn check(export: &Export, request: &Request) -> Result<(), u32> {
    let Request { kind, flags, offset, len, .. } = *request;
    // Zeroes are always written, so that there is no hole.
    let no_hole = if kind == command::WRITE_ZEROES { NO_HOLE } else { 0 };
    if flags & !(FUA | no_hole) != 0 {
        return Err(errno::EINVAL);
    }
    match kind {
        command::READ => {}
        command::WRITE | command::TRIM | command::WRITE_ZEROES if export.read_only => {
            return Err(errno::EPERM);
        }
        command::WRITE | command::WRITE_ZEROES => {}
        command::TRIM if export.trim => {}
        command::FLUSH if offset == 0 && len == 0 => return Ok(()),
        command::FLUSH => return Err(errno::EINVAL),
        _ => return Err(errno::ENOTSUP),
    }
    let block = u64::from(export.block);
    if len == 0 || offset % block != 0 || u64::from(len) % block != 0 {
        return Err(errno::EINVAL);
    }
    if kind == command::READ && len > MAX_PAYLOAD {
        return Err(errno::EOVERFLOW);
    }
    match offset.checked_add(u64::from(len)) {
        Some(end) if end <= export.size => Ok(()),
        _ if kind == command::WRITE || kind == command::WRITE_ZEROES => Err(errno::ENOSPC),
        _ => Err(errno::EINVAL),
    }
}

/// Converts Linux's errno to the protocol's; EIO for those that it does not have.
fn wire_errno(error: i32) -> u32 {
    match u32::try_from(error) {
        Ok(known @ (errno::EPERM | errno::EINVAL | errno::ENOSPC | errno::ENOTSUP)) => known,
        _ => errno::EIO,
    }
}

#[cfg(test)]
mod tests;
