//! The protocol's numbers and messages. Everything is big endian.

/// First bytes of a server.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second bytes of a server, and the start of every option: `IHAVEOPT`.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Start of a reply to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Start of a request.
pub const REQUEST: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const REPLY: u32 = 0x6744_6698;

/// Handshake flags of the server; the client answers with those it takes.
pub mod handshake_flag {
    /// Fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zeroes after the reply to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Options.
pub mod option {
    /// Choose an export and begin, the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// Give up.
    pub const ABORT: u32 = 2;
    /// What exports are there?
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin.
    pub const GO: u32 = 7;
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// The option's data are wrong.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
}

/// Pieces of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Least, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    /// The others mean something.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is taken.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is taken.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is taken.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// A flush on one connection covers writes answered on others.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Say goodbye.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
}

/// A command's flag: answer once it is durable.
pub const FUA: u16 = 1;

/// Errors as the wire has them; most are Linux's errno.
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// Failed.
    pub const EIO: u32 = 5;
    /// The request is wrong.
    pub const EINVAL: u32 = 22;
    /// Beyond the end.
    pub const ENOSPC: u32 = 28;
    /// Too long.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
}

/// A request's bytes.
pub const REQUEST_LEN: usize = 28;
/// Largest read or write in bytes; what the specification tells clients to expect at least.
pub const MOST: u32 = 32 << 20;

/// A request, without the bytes that follow a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: u16,
    /// Command.
    pub kind: u16,
    /// What the reply carries.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Request {
    /// Reads one; `None` where it does not start as one.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        let mut reader = Reader(bytes);
        (reader.u32()? == REQUEST).then_some(())?;
        Some(Request {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            len: reader.u32()?,
        })
    }
}

/// Takes big-endian numbers off the front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// So many bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
