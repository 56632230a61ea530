//! The fixed newstyle handshake as a value: each of the client's messages in, the server's answer out.

use super::Export;
use super::proto::{
    IHAVEOPT, MOST, NBDMAGIC, OPTION_REPLY, Reader, export_flag, handshake_flag, info, option, reply,
};

/// Options that a client may send before it begins; an honest one sends fewer than ten.
const MAX_OPTIONS: u32 = 64;
/// Bytes of an option that are read; a name may have 4096 (NBD's own limit).
const MAX_OPTION_LEN: usize = 4096 + 64;
/// Bytes of an option before its data.
const HEADER: usize = 16;

/// Where a handshake stands.
#[derive(Debug)]
pub struct Handshake {
    flags: Option<u32>,
    options: u32,
}

/// What came of the client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// There are not enough of them yet.
    More,
    /// So many were used; go on.
    Used(usize),
    /// So many were used; requests follow.
    Begin(usize),
    /// The connection is over, after what was put out.
    End,
}

impl Handshake {
    /// Greets a client.
    pub fn new(out: &mut Vec<u8>) -> Handshake {
        out.extend(NBDMAGIC.to_be_bytes());
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Handshake { flags: None, options: 0 }
    }

    /// Takes one message off `bytes` and answers it into `out`.
    pub fn step(&mut self, export: &Export, bytes: &[u8], out: &mut Vec<u8>) -> Step {
        let mut reader = Reader(bytes);
        let Some(flags) = self.flags else {
            let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
            return match reader.u32() {
                None => Step::More,
                Some(flags) if flags & !known == 0 => {
                    self.flags = Some(flags);
                    Step::Used(4)
                }
                Some(_) => Step::End,
            };
        };
        let (Some(magic), Some(kind), Some(len)) = (reader.u64(), reader.u32(), reader.u32()) else {
            return Step::More;
        };
        let len = len as usize;
        if magic != IHAVEOPT || len > MAX_OPTION_LEN || self.options == MAX_OPTIONS {
            return Step::End;
        }
        let Some(data) = reader.take(len) else { return Step::More };
        self.options += 1;
        self.option(export, kind, data, flags, HEADER + len, out)
    }

    fn option(
        &self,
        export: &Export,
        kind: u32,
        data: &[u8],
        flags: u32,
        used: usize,
        out: &mut Vec<u8>,
    ) -> Step {
        match kind {
            option::EXPORT_NAME if !export.answers_to(data) => Step::End,
            option::EXPORT_NAME => {
                out.extend(export.size.to_be_bytes());
                out.extend(export.flags().to_be_bytes());
                if flags & u32::from(handshake_flag::NO_ZEROES) == 0 {
                    out.extend([0; 124]);
                }
                Step::Begin(used)
            }
            option::ABORT => {
                answer(out, kind, reply::ACK, &[]);
                Step::End
            }
            option::LIST if data.is_empty() => {
                let name = export.name.as_bytes();
                let entry = [&(name.len() as u32).to_be_bytes(), name].concat();
                answer(out, kind, reply::SERVER, &entry);
                answer(out, kind, reply::ACK, &[]);
                Step::Used(used)
            }
            option::INFO | option::GO => match requested(data) {
                None => refuse(out, kind, reply::ERR_INVALID, used),
                Some(name) if !export.answers_to(name) => refuse(out, kind, reply::ERR_UNKNOWN, used),
                Some(_) => {
                    describe(export, kind, out);
                    if kind == option::GO { Step::Begin(used) } else { Step::Used(used) }
                }
            },
            option::LIST => refuse(out, kind, reply::ERR_INVALID, used),
            _ => refuse(out, kind, reply::ERR_UNSUP, used),
        }
    }
}

/// The name in the data of `INFO` and `GO`: a length, the name, a count, so many kinds of information.
fn requested(data: &[u8]) -> Option<&[u8]> {
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
    answer(out, kind, reply::INFO, &data);
    data.clear();
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    for size in [export.block, export.block.max(4096), MOST] {
        data.extend(size.to_be_bytes());
    }
    answer(out, kind, reply::INFO, &data);
    answer(out, kind, reply::ACK, &[]);
}

fn refuse(out: &mut Vec<u8>, kind: u32, why: u32, used: usize) -> Step {
    answer(out, kind, why, &[]);
    Step::Used(used)
}

fn answer(out: &mut Vec<u8>, kind: u32, what: u32, data: &[u8]) {
    out.extend(OPTION_REPLY.to_be_bytes());
    for number in [kind, what, data.len() as u32] {
        out.extend(number.to_be_bytes());
    }
    out.extend(data);
}

impl Export {
    fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// Transmission flags.
    pub fn flags(&self) -> u16 {
        use export_flag::*;
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        let trim = if self.trim && !self.read_only { SEND_TRIM } else { 0 };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | read_only | trim
    }
}
