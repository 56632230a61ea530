//! The control ring: `struct xen_netif_ctrl_request` and its kin (netif.h:342), by which a frontend sets how its
//! frames are spread over queues and, with staging grants, which pages the backend keeps mapped.

use crate::GrantRef;
use crate::ring::Protocol;
use crate::shm::Slot;
use bitflags::bitflags;

/// `XEN_NETIF_CTRL_TYPE_*` (netif.h:363).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Type(pub u16);

impl Type {
    /// Never used.
    pub const INVALID: Self = Self(0);
    /// Which hash types are supported? The answer's data is a [`HashTypes`].
    pub const GET_HASH_FLAGS: Self = Self(1);
    /// Data 0: the [`HashTypes`] to be used.
    pub const SET_HASH_FLAGS: Self = Self(2);
    /// Data 0: grant of a page with the key; data 1: its bytes.
    pub const SET_HASH_KEY: Self = Self(3);
    /// How many entries may the mapping have?
    pub const GET_HASH_MAPPING_SIZE: Self = Self(4);
    /// Data 0: entries of the mapping.
    pub const SET_HASH_MAPPING_SIZE: Self = Self(5);
    /// Data 0: grant of a page of 32-bit queue numbers; data 1: how many; data 2: first entry they replace.
    pub const SET_HASH_MAPPING: Self = Self(6);
    /// Data 0: the [`Algorithm`].
    pub const SET_HASH_ALGORITHM: Self = Self(7);
    /// Data 0: queue. How many grants may stay mapped?
    pub const GET_GREF_MAPPING_SIZE: Self = Self(8);
    /// Data 0: queue; data 1: grant of a page of [`Gref`]s; data 2: how many.
    pub const ADD_GREF_MAPPING: Self = Self(9);
    /// As [`Type::ADD_GREF_MAPPING`], and each entry has its status.
    pub const DEL_GREF_MAPPING: Self = Self(10);
}

/// `XEN_NETIF_CTRL_STATUS_*` (netif.h:403).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// The request is not supported.
    pub const NOT_SUPPORTED: Self = Self(1);
    /// The request makes no sense.
    pub const INVALID_PARAMETER: Self = Self(2);
    /// More than there is room for.
    pub const BUFFER_OVERFLOW: Self = Self(3);
}

bitflags! {
    /// `XEN_NETIF_CTRL_HASH_TYPE_*` (netif.h:226): what of a packet is hashed.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct HashTypes: u32 {
        /// IPv4 source and destination address.
        const IPV4 = 1;
        /// The same, and TCP source and destination port.
        const IPV4_TCP = 2;
        /// IPv6 source and destination address.
        const IPV6 = 4;
        /// The same, and TCP source and destination port.
        const IPV6_TCP = 8;
        /// Undefined bits are kept, to be refused.
        const _ = !0;
    }

    /// `XEN_NETIF_CTRLF_GREF_*` (netif.h:443).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct GrefFlags: u16 {
        /// The page is to be mapped read-only.
        const READONLY = 1;
        /// Undefined bits are kept.
        const _ = !0;
    }
}

/// `XEN_NETIF_CTRL_HASH_ALGORITHM_*` (netif.h:277).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct Algorithm(pub u32);

impl Algorithm {
    /// No hash; the backend chooses queues as it likes.
    pub const NONE: Self = Self(0);
    /// [`super::hash::Toeplitz`].
    pub const TOEPLITZ: Self = Self(1);
}

/// `struct xen_netif_ctrl_request` (netif.h:359), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Echoed in the response.
    pub id: u16,
    /// What is asked.
    pub kind: Type,
    /// By the type.
    pub data: [u32; 3],
}

/// `struct xen_netif_ctrl_response` (netif.h:398), 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// Copied from the request.
    pub id: u16,
    /// Copied from the request.
    pub kind: Type,
    /// How it went.
    pub status: Status,
    /// By the type.
    pub data: u32,
}

/// `struct xen_netif_gref` (netif.h:439), 8 bytes: an entry of the page that a gref mapping's request grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Gref {
    /// The page to be kept mapped.
    pub gref: GrantRef,
    /// [`GrefFlags`].
    pub flags: u16,
    /// Out, for [`Type::DEL_GREF_MAPPING`]: a [`Status`].
    pub status: u16,
}

const _: () = assert!(size_of::<Gref>() == 8);

/// The control ring: front to back, one response for each request, in any order.
#[derive(Clone, Copy, Debug)]
pub enum Ctrl {}

/// `id` and `type`, as both structures begin.
fn head(id: u16, kind: Type) -> u32 {
    u32::from(id) | u32::from(kind.0) << 16
}

impl Protocol for Ctrl {
    const NAME: &'static str = "netif ctrl";
    const SLOT: usize = 16;
    type Request = Request;
    type Response = Response;

    fn read_request(slot: Slot<'_>) -> Request {
        let first = slot.load32(0);
        let data = [slot.load32(4), slot.load32(8), slot.load32(12)];
        Request { id: first as u16, kind: Type((first >> 16) as u16), data }
    }

    fn write_request(slot: Slot<'_>, r: &Request) {
        slot.store32(0, head(r.id, r.kind));
        for (i, data) in r.data.into_iter().enumerate() {
            slot.store32(4 + 4 * i, data);
        }
    }

    fn read_response(slot: Slot<'_>) -> Response {
        let first = slot.load32(0);
        let status = Status(slot.load32(4));
        let data = slot.load32(8);
        Response { id: first as u16, kind: Type((first >> 16) as u16), status, data }
    }

    fn write_response(slot: Slot<'_>, r: &Response) {
        slot.store32(0, head(r.id, r.kind));
        slot.store32(4, r.status.0);
        slot.store32(8, r.data);
    }
}
