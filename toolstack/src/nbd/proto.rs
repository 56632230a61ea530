//! Constants and messages of the NBD protocol. All numbers are big-endian.

/// The first 8 bytes that a server sends: `NBDMAGIC`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// The next 8 bytes that a server sends, and the start of every option: `IHAVEOPT`.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// The magic number of a reply to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// The magic number of a request (`NBD_REQUEST_MAGIC`).
pub const REQUEST: u32 = 0x2560_9513;
/// The magic number of a simple reply (`NBD_SIMPLE_REPLY_MAGIC`).
pub const REPLY: u32 = 0x6744_6698;

/// Handshake flags of the server; the client replies with those it accepts.
pub mod handshake_flag {
    /// The fixed newstyle handshake.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The reply to `EXPORT_NAME` is not padded with 124 zero bytes.
    pub const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
pub mod option {
    /// Selects an export and starts transmission, without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// Aborts the handshake.
    pub const ABORT: u32 = 2;
    /// Lists the exports.
    pub const LIST: u32 = 3;
    /// Describes an export.
    pub const INFO: u32 = 6;
    /// Describes an export and starts transmission.
    pub const GO: u32 = 7;
}

/// Types of replies to options.
pub mod reply {
    /// The option was processed.
    pub const ACK: u32 = 1;
    /// The name of an export.
    pub const SERVER: u32 = 2;
    /// Information of one type.
    pub const INFO: u32 = 3;
    /// The option is not supported.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// The server's policy forbids it.
    pub const ERR_POLICY: u32 = 1 << 31 | 2;
    /// The option's data is invalid.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
}

/// Types of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The smallest, preferred and largest size of a request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    /// The other flags are valid.
    pub const HAS_FLAGS: u16 = 1;
    /// The export is read-only.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is supported.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is supported.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is supported.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is supported.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// A flush on one connection covers writes completed on others.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Write zeroes, which have no payload.
    pub const WRITE_ZEROES: u16 = 6;
}

/// The command flag FUA: reply once the write is durable.
pub const FUA: u16 = 1;
/// The command flag NO_HOLE of WRITE_ZEROES: the range is to stay allocated.
pub const NO_HOLE: u16 = 1 << 1;

/// Error numbers of the protocol; most are equal to Linux's errno.
pub mod errno {
    /// Not permitted.
    pub const EPERM: u32 = 1;
    /// I/O error.
    pub const EIO: u32 = 5;
    /// The request is invalid.
    pub const EINVAL: u32 = 22;
    /// The write is beyond the end.
    pub const ENOSPC: u32 = 28;
    /// The request is too long.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
}

/// Bytes of a request, without a write's payload.
pub const REQUEST_LEN: usize = 28;
/// The largest read or write in bytes: what the specification tells clients to assume.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// A request, without a write's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command flags.
    pub flags: u16,
    /// The command.
    pub kind: u16,
    /// The client's identifier of the request, which the reply repeats.
    pub cookie: u64,
    /// The offset in bytes from the start of the export.
    pub offset: u64,
    /// The length in bytes.
    pub len: u32,
}

impl Request {
    /// Parses a request; `None` if it has not the magic number.
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

/// Reads big-endian numbers from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Takes `len` bytes; `None` if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Takes a 16-bit number.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
