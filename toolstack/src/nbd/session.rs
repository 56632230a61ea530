//! One client's connection as a value: bytes in, requests out; answers in, bytes out. It is bounded whatever the
//! client sends: in what it holds unread, in what it has asked and not been answered, in what it has not taken.

use std::collections::HashMap;

use super::handshake::{Handshake, Step};
use super::proto::{FUA, MOST, REPLY, REQUEST_LEN, Request, command, errno};
use super::{Export, Op, Outcome};

/// Requests in flight for one client.
const MAX_PENDING: usize = 256;
/// Bytes that a client may have in flight or not have taken yet, beyond which nothing more is read from it.
const MOST_BYTES: usize = 2 * MOST as usize;

/// A connection.
#[derive(Debug)]
pub struct Session {
    handshake: Option<Handshake>,
    input: Vec<u8>,
    /// How much of `input` has been used.
    used: usize,
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    /// Questions in flight by number: the client's cookie, and the bytes that count for it.
    pending: HashMap<u64, (u64, usize)>,
    bytes: usize,
    ended: bool,
}

impl Session {
    /// A client that has just come; the greeting waits to be sent.
    pub fn new() -> Session {
        let mut output = Vec::new();
        let handshake = Some(Handshake::new(&mut output));
        let (input, pending) = (Vec::new(), HashMap::new());
        Session { handshake, input, used: 0, output, sent: 0, pending, bytes: 0, ended: false }
    }

    /// Takes bytes from the client; [`Session::next`] says what they ask.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.ended {
            return;
        }
        // Moved to the front once the used part is the larger one: each byte is moved at most once.
        if self.used > self.input.len() / 2 {
            self.input.drain(..self.used);
            self.used = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// Whether more should be read from the client now.
    pub fn wants_input(&self) -> bool {
        !self.ended && self.has_room() && self.unused().len() < MOST as usize + REQUEST_LEN
    }

    fn unused(&self) -> &[u8] {
        &self.input[self.used..]
    }

    fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING && self.bytes + self.unsent().len() < MOST_BYTES
    }

    /// Whether the connection can be dropped: it ended, and all is answered and sent.
    pub fn is_over(&self) -> bool {
        self.ended && self.pending.is_empty() && self.unsent().is_empty()
    }

    /// The client will send no more.
    pub fn end(&mut self) {
        self.ended = true;
        self.used = self.input.len();
    }

    /// The next question for the blocks, which is to be answered under `id`; `None` when more input is needed or
    /// enough is in flight. What can be answered here is.
    pub fn next(&mut self, export: &Export, id: u64) -> Option<Op> {
        while !self.ended && self.has_room() {
            if self.handshake.is_some() {
                self.shake(export)?;
                continue;
            }
            let header = self.unused().first_chunk()?;
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
                Err(error) => self.reply(request.cookie, error, &[]),
            }
        }
        None
    }

    /// `None` when more input is needed.
    fn shake(&mut self, export: &Export) -> Option<()> {
        let handshake = self.handshake.as_mut()?;
        match handshake.step(export, &self.input[self.used..], &mut self.output) {
            Step::More => return None,
            Step::Used(used) => self.used += used,
            Step::Begin(used) => {
                self.used += used;
                self.handshake = None;
            }
            Step::End => self.end(),
        }
        Some(())
    }

    /// Takes a request and its payload off the input. `None` when the payload is not all there; an errno when the
    /// request is to be refused, 0 when it is not to be answered.
    fn take(&mut self, export: &Export, request: Request) -> Option<Result<Op, u32>> {
        let payload = if request.kind == command::WRITE { request.len as usize } else { 0 };
        if payload > MOST as usize {
            // Its bytes cannot be skipped within bounds.
            self.end();
            return None;
        }
        let data = self.unused().get(REQUEST_LEN..REQUEST_LEN + payload)?.to_vec();
        self.used += REQUEST_LEN + payload;
        if request.kind == command::DISC {
            self.end();
            return Some(Err(0));
        }
        Some(check(export, &request).map(|()| {
            let Request { offset, len, .. } = request;
            match request.kind {
                command::READ => Op::Read { offset, len },
                command::FLUSH => Op::Flush,
                command::TRIM => Op::Trim { offset, len },
                _ => Op::Write { offset, data, durable: request.flags & FUA != 0 },
            }
        }))
    }

    /// The blocks' answer to question `id`; `false` if it was not this client's.
    pub fn answer(&mut self, id: u64, outcome: &Outcome) -> bool {
        let Some((cookie, bytes)) = self.pending.remove(&id) else { return false };
        self.bytes -= bytes;
        match outcome {
            Ok(data) => self.reply(cookie, 0, data),
            Err(error) => self.reply(cookie, wire_errno(*error), &[]),
        }
        true
    }

    fn reply(&mut self, cookie: u64, error: u32, data: &[u8]) {
        self.output.extend(REPLY.to_be_bytes());
        self.output.extend(error.to_be_bytes());
        self.output.extend(cookie.to_be_bytes());
        self.output.extend(data);
    }

    /// What the client has not been sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

/// Whether a request may be asked of the blocks; an errno when not.
fn check(export: &Export, request: &Request) -> Result<(), u32> {
    let Request { kind, flags, offset, len, .. } = *request;
    if flags & !FUA != 0 {
        return Err(errno::EINVAL);
    }
    match kind {
        command::READ => {}
        command::WRITE | command::TRIM if export.read_only => return Err(errno::EPERM),
        command::WRITE => {}
        command::TRIM if export.trim => {}
        command::FLUSH if offset == 0 && len == 0 => return Ok(()),
        command::FLUSH => return Err(errno::EINVAL),
        _ => return Err(errno::ENOTSUP),
    }
    let block = u64::from(export.block);
    if len == 0 || offset % block != 0 || u64::from(len) % block != 0 {
        return Err(errno::EINVAL);
    }
    if kind == command::READ && len > MOST {
        return Err(errno::EOVERFLOW);
    }
    match offset.checked_add(u64::from(len)) {
        Some(end) if end <= export.size => Ok(()),
        _ if kind == command::WRITE => Err(errno::ENOSPC),
        _ => Err(errno::EINVAL),
    }
}

/// Linux's errno as the wire has it; those it has no number for are EIO.
fn wire_errno(error: i32) -> u32 {
    match u32::try_from(error) {
        Ok(known @ (errno::EPERM | errno::EINVAL | errno::ENOSPC | errno::ENOTSUP)) => known,
        _ => errno::EIO,
    }
}

#[cfg(test)]
mod tests;
