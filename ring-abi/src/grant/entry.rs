//! Entries of a grant table, version 1 and version 2 (grant_table.h:97 and 204).
//!
//! These are bytes of memory that is shared: a reader reads each word once, atomically, and
//! works on the copy.

use super::GrantRef;
use crate::DomId;
use bitflags::bitflags;

bitflags! {
    /// The flags of an entry, less its type: `GTF_*` (grant_table.h:159).
    ///
    /// Bits 2 and 3 mean one thing in an entry that permits access and another in one that accepts a transfer.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Flags: u16 {
        /// To be read only, set by the granter: `GTF_readonly`.
        const READONLY = 1 << 2;
        /// Mapped for reading, set by Xen: `GTF_reading`.
        const READING = 1 << 3;
        /// Mapped for writing, set by Xen: `GTF_writing`.
        const WRITING = 1 << 4;
        /// Cache attribute: `GTF_PWT`.
        const PWT = 1 << 5;
        /// Cache attribute: `GTF_PCD`.
        const PCD = 1 << 6;
        /// Cache attribute: `GTF_PAT`.
        const PAT = 1 << 7;
        /// Only a part of the page, only to be copied (version 2): `GTF_sub_page`.
        const SUB_PAGE = 1 << 8;
        /// Xen is about to transfer a page; hands off until it has: `GTF_transfer_committed`.
        const TRANSFER_COMMITTED = 1 << 2;
        /// The transferred page's number is in `frame`: `GTF_transfer_completed`.
        const TRANSFER_COMPLETED = 1 << 3;
    }
}

/// The type of an entry: its two lowest bits, `GTF_type_mask` (grant_table.h:146).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// Grants nothing: `GTF_invalid`.
    Invalid = 0,
    /// The domain may map or copy the frame: `GTF_permit_access`.
    PermitAccess = 1,
    /// The domain may give us a frame: `GTF_accept_transfer`.
    AcceptTransfer = 2,
    /// The domain may copy through a grant that we were given (version 2): `GTF_transitive`.
    Transitive = 3,
}

/// `GTF_type_mask`.
pub const TYPE_MASK: u16 = 3;

/// The type and the flags of an entry's first half-word.
pub const fn split(flags: u16) -> (Kind, Flags) {
    let kind = match flags & TYPE_MASK {
        0 => Kind::Invalid,
        1 => Kind::PermitAccess,
        2 => Kind::AcceptTransfer,
        _ => Kind::Transitive,
    };
    (kind, Flags::from_bits_truncate(flags))
}

/// `struct grant_entry_v1` (grant_table.h:111), 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct V1 {
    /// [`Kind`] and [`Flags`], written by both sides.
    pub flags: u16,
    /// Who is granted what, written by the granter.
    pub domid: DomId,
    /// Frame number: the granter's, or after a transfer the one that came.
    pub frame: u32,
}

/// `struct grant_entry_header` (grant_table.h:213), 4 bytes: how every entry of version 2 begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Header {
    /// [`Kind`] and [`Flags`]; in version 2 Xen's bits are in an array of their own ([`Status`]).
    pub flags: u16,
    /// Who is granted what.
    pub domid: DomId,
}

/// `grant_entry_v2.full_page` (grant_table.h:234), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FullPage {
    /// Type, flags and domain.
    pub header: Header,
    /// Not used.
    pub pad0: u32,
    /// Frame number.
    pub frame: u64,
}

/// `grant_entry_v2.sub_page` (grant_table.h:245), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SubPage {
    /// Type, flags and domain.
    pub header: Header,
    /// First byte in the page.
    pub page_off: u16,
    /// Bytes.
    pub length: u16,
    /// Frame number.
    pub frame: u64,
}

/// `grant_entry_v2.transitive` (grant_table.h:260), which fills 12 of the entry's 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Transitive {
    /// Type, flags and domain.
    pub header: Header,
    /// Whose grant it is.
    pub trans_domid: DomId,
    /// Not used.
    pub pad0: u16,
    /// The grant.
    pub gref: GrantRef,
}

/// Bytes of an entry of version 2, whatever its type: `union grant_entry_v2`.
pub const V2_LEN: usize = 16;

/// `grant_status_t` (grant_table.h:273): version 2's array of [`Flags::READING`] and [`Flags::WRITING`].
pub type Status = u16;

const _: () = assert!(size_of::<V1>() == 8 && size_of::<Header>() == 4);
const _: () = assert!(size_of::<FullPage>() == V2_LEN && size_of::<SubPage>() == V2_LEN);
const _: () = assert!(size_of::<Transitive>() == 12);
