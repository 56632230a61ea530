//! The fixed newstyle handshake without I/O: the client's messages in, the server's replies out.

use super::Export;
use super::proto::{
    IHAVEOPT, MAX_PAYLOAD, NBDMAGIC, OPTION_REPLY, Reader, export_flag, handshake_flag, info, option, reply,
};

/// Options that a client may send before transmission; usual clients send fewer than ten.
const MAX_OPTIONS: u32 = 64;
/// Longest data of an option in bytes; a name may have 4096 (the protocol's limit).
const MAX_OPTION_LEN: usize = 4096 + 64;
/// Bytes of an option's header.
const HEADER: usize = 16;

/// The state of a handshake.
#[derive(Debug)]
pub struct Handshake {
    flags: Option<u32>,
    options: u32,
    /// As many clients have the export open as may.
    full: Option<usize>,
}

/// What a handshake made of the client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The message is incomplete.
    NeedMore,
    /// A message of this many bytes was processed; the handshake continues.
    Consumed(usize),
    /// A message of this many bytes was processed; requests follow.
    Transmission(usize),
    /// The connection is to be closed after the output was sent.
    Close,
}

impl Handshake {
    /// Starts a handshake, and writes the server's greeting to `out`.
    pub fn new(out: &mut Vec<u8>) -> Handshake {
        out.extend(NBDMAGIC.to_be_bytes());
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Handshake { flags: None, options: 0, full: None }
    }

    /// Says whether as many clients as may, this number, have the export open: this one is refused then.
    pub fn set_full(&mut self, full: Option<usize>) {
        self.full = full;
    }

    /// Processes one message at the front of `bytes`, and writes the reply to `out`.
    pub fn step(&mut self, export: &Export, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        let mut reader = Reader(bytes);
        let Some(flags) = self.flags else {
            let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
            return match reader.u32() {
                None => Step::NeedMore,
                Some(flags) if flags & !known == 0 => {
                    self.flags = Some(flags);
                    Step::Consumed(4)
                }
                Some(_) => Step::Close,
            };
        };
        let (Some(magic), Some(kind), Some(len)) = (reader.u64(), reader.u32(), reader.u32()) else {
            return Step::NeedMore;
        };
        let len = len as usize;
        if magic != IHAVEOPT || len > MAX_OPTION_LEN || self.options == MAX_OPTIONS {
            return Step::Close;
        }
        let Some(data) = reader.take(len) else { return Step::NeedMore };
        self.options += 1;
        self.option(export, kind, data, flags, HEADER + len, out)
    }

    fn option(
        &self,
        export: &Export,
        kind: u32,
        data: &[u8],
        flags: u32,
        consumed: usize,
        out: &mut Vec<u8>,
    ) -> Step {
        match kind {
            // This option has no reply that is an error.
            option::EXPORT_NAME if !export.is_named(data) || self.full.is_some() => Step::Close,
            option::EXPORT_NAME => {
                out.extend(export.size.to_be_bytes());
                out.extend(export.flags().to_be_bytes());
                if flags & u32::from(handshake_flag::NO_ZEROES) == 0 {
                    out.extend([0; 124]);
                }
                Step::Transmission(consumed)
            }
            option::ABORT => {
                write_reply(out, kind, reply::ACK, &[]);
                Step::Close
            }
            option::LIST if data.is_empty() => {
                let name = export.name.as_bytes();
                let entry = [&(name.len() as u32).to_be_bytes(), name].concat();
                write_reply(out, kind, reply::SERVER, &entry);
                write_reply(out, kind, reply::ACK, &[]);
                Step::Consumed(consumed)
            }
            option::INFO | option::GO => match requested_name(data) {
                None => refuse(out, kind, reply::ERR_INVALID, consumed),
                Some(name) if !export.is_named(name) => refuse(out, kind, reply::ERR_UNKNOWN, consumed),
                Some(_) if kind == option::INFO => {
                    describe(export, kind, out);
                    Step::Consumed(consumed)
                }
                Some(_) => match self.full {
                    None => {
                        describe(export, kind, out);
                        Step::Transmission(consumed)
                    }
                    Some(most) => {
                        let text = format!("{most} clients have it open, which is the most");
                        write_reply(out, kind, reply::ERR_POLICY, text.as_bytes());
                        Step::Consumed(consumed)
                    }
                },
            },
            option::LIST => refuse(out, kind, reply::ERR_INVALID, consumed),
            _ => refuse(out, kind, reply::ERR_UNSUP, consumed),
        }
    }
}

/// Parses the data of `INFO` and `GO`, and returns the name: a length, the name, a count, that many types.
fn requested_name(data: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(data);
    let len = reader.u32()? as usize;
    let name = reader.take(len)?;
    let kinds = usize::from(reader.u16()?);
    (reader.0.len() == kinds * 2).then_some(name)
}

fn describe(export: &Export, kind: u32, out: &mut Vec<u8>) {
    let mut data = Vec::with_capacity(14);
    data.extend(info::EXPORT.to_be_bytes());
    data.extend(export.size.to_be_bytes());
    data.extend(export.flags().to_be_bytes());
    write_reply(out, kind, reply::INFO, &data);
    data.clear();
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    for size in [export.block, export.block.max(4096), MAX_PAYLOAD] {
        data.extend(size.to_be_bytes());
    }
    write_reply(out, kind, reply::INFO, &data);
    write_reply(out, kind, reply::ACK, &[]);
}

fn refuse(out: &mut Vec<u8>, kind: u32, error: u32, consumed: usize) -> Step {
    write_reply(out, kind, error, &[]);
    Step::Consumed(consumed)
}

fn write_reply(out: &mut Vec<u8>, kind: u32, reply: u32, data: &[u8]) {
    out.extend(OPTION_REPLY.to_be_bytes());
    for number in [kind, reply, data.len() as u32] {
        out.extend(number.to_be_bytes());
    }
    out.extend(data);
}

impl Export {
    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// Returns the transmission flags.
    pub fn flags(&self) -> u16 {
        use export_flag::*;
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        let trim = if self.trim && !self.read_only { SEND_TRIM } else { 0 };
        let zeroes = if self.read_only { 0 } else { SEND_WRITE_ZEROES };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | read_only | trim | zeroes
    }
}
