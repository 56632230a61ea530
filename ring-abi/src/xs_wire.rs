//! The xenstore wire: message types, header, error names, limits and the ring page's offsets.
//!
//! Source: `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Integers are little-endian, as on
//! every machine Xen runs guests on.

use core::fmt;

/// Bytes in a message header (`struct xsd_sockmsg`).
pub const HEADER_SIZE: usize = 16;
/// Most bytes in a payload, either way (`XENSTORE_PAYLOAD_MAX`): a peer that sends more is cut off.
pub const PAYLOAD_MAX: usize = 4096;
/// Most bytes in an absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Most bytes in a path relative to `/local/domain/<domid>` (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// `xsd_sockmsg.type`: what a message asks or answers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are Xen's own; docs/misc/xenstore.txt describes each
pub enum MessageType {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    // 20 was XS_RESTRICT, which has been removed.
    ResetWatches = 21,
    DirectoryPart = 22,
    GetFeature = 23,
    SetFeature = 24,
    GetQuota = 25,
    SetQuota = 26,
    Invalid = 0xffff,
}

impl MessageType {
    /// Every type there is, `Invalid` last.
    pub const ALL: [MessageType; 27] = {
        use MessageType::*;
        [
            Control,
            Directory,
            Read,
            GetPerms,
            Watch,
            Unwatch,
            TransactionStart,
            TransactionEnd,
            Introduce,
            Release,
            GetDomainPath,
            Write,
            Mkdir,
            Rm,
            SetPerms,
            WatchEvent,
            Error,
            IsDomainIntroduced,
            Resume,
            SetTarget,
            ResetWatches,
            DirectoryPart,
            GetFeature,
            SetFeature,
            GetQuota,
            SetQuota,
            Invalid,
        ]
    };

    /// The type with this number, or `None` for 20, for what is not assigned, and for `XS_INVALID`.
    pub fn from_u32(value: u32) -> Option<MessageType> {
        MessageType::ALL.into_iter().find(|t| *t as u32 == value && *t != MessageType::Invalid)
    }
}

/// A message header as it goes over the wire: `struct xsd_sockmsg`, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A [`MessageType`], or what a peer believes to be one.
    pub kind: u32,
    /// Chosen by the client, echoed in the reply; 0 in watch events.
    pub req_id: u32,
    /// The transaction it belongs to; 0 for none.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl Header {
    /// The header these bytes hold; nothing is checked.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Header {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Header { kind: word(0), req_id: word(4), tx_id: word(8), len: word(12) }
    }

    /// The bytes of this header.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (at, word) in [self.kind, self.req_id, self.tx_id, self.len].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

macro_rules! errors {
    ($($name:ident = $errno:literal, $what:literal;)*) => {
        /// An error reply, sent by name (`xsd_errors`); the order is the header's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(clippy::upper_case_acronyms)]
        pub enum XsError { $(#[doc = $what] $name,)* }

        impl XsError {
            /// Every error the wire can carry.
            pub const ALL: &'static [XsError] = &[$(XsError::$name,)*];

            /// The name that goes over the wire, without its NUL.
            pub fn name(self) -> &'static str {
                match self { $(XsError::$name => stringify!($name),)* }
            }

            /// The error of that name.
            pub fn from_name(name: &str) -> Option<XsError> {
                match name { $(stringify!($name) => Some(XsError::$name),)* _ => None }
            }

            /// Linux's number for it.
            pub fn errno(self) -> i32 {
                match self { $(XsError::$name => $errno,)* }
            }

            /// In words.
            pub fn describe(self) -> &'static str {
                match self { $(XsError::$name => $what,)* }
            }
        }
    };
}

errors! {
    EINVAL = 22, "invalid argument";
    EACCES = 13, "permission denied";
    EEXIST = 17, "already exists";
    EISDIR = 21, "is a directory";
    ENOENT = 2, "no such node";
    ENOMEM = 12, "out of memory";
    ENOSPC = 28, "quota exceeded";
    EIO = 5, "input/output error";
    ENOTEMPTY = 39, "directory not empty";
    ENOSYS = 38, "not implemented";
    EROFS = 30, "read-only";
    EBUSY = 16, "busy";
    EAGAIN = 11, "try again";
    EISCONN = 106, "already connected";
    E2BIG = 7, "too big";
    EPERM = 1, "operation not permitted";
}

impl fmt::Display for XsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.describe(), self.name())
    }
}

impl core::error::Error for XsError {}

/// `struct xenstore_domain_interface`: the page a domain shares with the store. Offsets in bytes.
pub mod ring_page {
    use crate::stream::{Interface, Layout};

    /// Bytes in each of the two rings (`XENSTORE_RING_SIZE`); indexes are masked with this minus one.
    pub const RING_SIZE: usize = 1024;
    /// Requests to the store.
    pub const REQ: usize = 0;
    /// Replies and watch events.
    pub const RSP: usize = 1024;
    /// How far the store has read requests.
    pub const REQ_CONS: usize = 2048;
    /// How far the domain has written requests.
    pub const REQ_PROD: usize = 2052;
    /// How far the domain has read replies.
    pub const RSP_CONS: usize = 2056;
    /// How far the store has written replies.
    pub const RSP_PROD: usize = 2060;
    /// Bitmap of [`feature`]s, written by the store.
    pub const SERVER_FEATURES: usize = 2064;
    /// [`CONNECTED`] or [`RECONNECT`].
    pub const CONNECTION: usize = 2068;
    /// One of the `ERROR_` values, written by the store.
    pub const ERROR: usize = 2072;
    /// The event channel (Xen 4.21 and later).
    pub const EVTCHN_PORT: usize = 2076;

    /// Both rings, for [`crate::stream::Stream`].
    pub const INTERFACE: Interface = Interface {
        name: "xenstore",
        to_back: Layout { ring: REQ, size: RING_SIZE as u32, cons: REQ_CONS, prod: REQ_PROD },
        to_front: Layout { ring: RSP, size: RING_SIZE as u32, cons: RSP_CONS, prod: RSP_PROD },
    };

    /// `connection`: the steady state.
    pub const CONNECTED: u32 = 0;
    /// `connection`: a reconnect is in progress.
    pub const RECONNECT: u32 = 1;

    /// `error`: none.
    pub const ERROR_NONE: u32 = 0;
    /// `error`: communication problem.
    pub const ERROR_COMM: u32 = 1;
    /// `error`: invalid ring index.
    pub const ERROR_RINGIDX: u32 = 2;
    /// `error`: protocol violation (payload too long).
    pub const ERROR_PROTO: u32 = 3;

    /// Bits of `server_features`, also the value of GET_FEATURE and SET_FEATURE.
    pub mod feature {
        /// The ring can be reconnected.
        pub const RECONNECTION: u32 = 1;
        /// The `error` field is there.
        pub const ERROR: u32 = 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_types_equal_those_of_xs_wire_h() {
        assert_eq!(MessageType::from_u32(0), Some(MessageType::Control));
        assert_eq!(MessageType::from_u32(19), Some(MessageType::SetTarget));
        assert_eq!(MessageType::from_u32(20), None);
        assert_eq!(MessageType::from_u32(21), Some(MessageType::ResetWatches));
        assert_eq!(MessageType::from_u32(26), Some(MessageType::SetQuota));
        assert_eq!(MessageType::from_u32(27), None);
        assert_eq!(MessageType::from_u32(0xffff), None);
    }

    #[test]
    fn header_bytes_round_trip() {
        let header = Header { kind: 2, req_id: 0x0102_0304, tx_id: 7, len: 4096 };
        let bytes = header.to_bytes();
        assert_eq!(bytes[4..8], [4, 3, 2, 1]);
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn error_names_round_trip() {
        assert_eq!(XsError::ALL.len(), 16);
        for error in XsError::ALL {
            assert_eq!(XsError::from_name(error.name()), Some(*error));
        }
        assert_eq!(XsError::from_name("EQUOTA"), None);
    }
}
