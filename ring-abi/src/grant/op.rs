//! `HYPERVISOR_grant_table_op`: command numbers and the structures they take (grant_table.h:292), as a 64-bit
//! domain has them. The 32-bit sizes of those that differ are [`COPY_LEN_32`] and [`TRANSFER_LEN_32`].

use super::{GrantRef, Status};
use crate::DomId;

/// `GNTTABOP_map_grant_ref`.
pub const MAP_GRANT_REF: u32 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const UNMAP_GRANT_REF: u32 = 1;
/// `GNTTABOP_setup_table`.
pub const SETUP_TABLE: u32 = 2;
/// `GNTTABOP_dump_table`.
pub const DUMP_TABLE: u32 = 3;
/// `GNTTABOP_transfer`.
pub const TRANSFER: u32 = 4;
/// `GNTTABOP_copy`.
pub const COPY: u32 = 5;
/// `GNTTABOP_query_size`.
pub const QUERY_SIZE: u32 = 6;
/// `GNTTABOP_unmap_and_replace`.
pub const UNMAP_AND_REPLACE: u32 = 7;
/// `GNTTABOP_set_version`.
pub const SET_VERSION: u32 = 8;
/// `GNTTABOP_get_status_frames`.
pub const GET_STATUS_FRAMES: u32 = 9;
/// `GNTTABOP_get_version`.
pub const GET_VERSION: u32 = 10;
/// `GNTTABOP_swap_grant_ref`.
pub const SWAP_GRANT_REF: u32 = 11;
/// `GNTTABOP_cache_flush`.
pub const CACHE_FLUSH: u32 = 12;

/// `grant_handle_t`: what a mapping is undone by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Handle(pub u32);

/// `struct gnttab_map_grant_ref` (grant_table.h:333), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Map {
    /// Where to map, an address.
    pub host_addr: u64,
    /// [`super::MapFlags`].
    pub flags: u32,
    /// What to map.
    pub gref: GrantRef,
    /// Whose it is.
    pub dom: DomId,
    /// Out: how it went.
    pub status: Status,
    /// Out: to unmap it by.
    pub handle: Handle,
    /// Out: where devices find it.
    pub dev_bus_addr: u64,
}

/// `struct gnttab_unmap_grant_ref` (grant_table.h:357), 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Unmap {
    /// As it was mapped; 0 is ignored.
    pub host_addr: u64,
    /// As it was mapped; 0 is ignored.
    pub dev_bus_addr: u64,
    /// The mapping.
    pub handle: Handle,
    /// Out: how it went.
    pub status: Status,
}

/// `struct gnttab_copy.source` and `.dest` (grant_table.h:452), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct CopyEnd {
    /// A grant reference in the low 32 bits or a frame number, as [`super::CopyFlags`] says.
    pub frame: u64,
    /// Whose it is.
    pub domid: DomId,
    /// First byte in the page.
    pub offset: u16,
}

/// `struct gnttab_copy` (grant_table.h:450), 40 bytes. Neither end may cross a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct CopyOp {
    /// From where.
    pub source: CopyEnd,
    /// To where.
    pub dest: CopyEnd,
    /// Bytes.
    pub len: u16,
    /// [`super::CopyFlags`].
    pub flags: u16,
    /// Out: how it went.
    pub status: Status,
}

/// `struct gnttab_transfer` (grant_table.h:411), 24 bytes. The page is gone afterwards unless the status is
/// [`Status::BAD_PAGE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Transfer {
    /// Our frame, to be given away.
    pub mfn: u64,
    /// To whom.
    pub domid: DomId,
    /// Their entry, which accepts a transfer.
    pub gref: GrantRef,
    /// Out: how it went.
    pub status: Status,
}

/// Bytes of `struct gnttab_copy` in a 32-bit domain.
pub const COPY_LEN_32: usize = 24;
/// Bytes of `struct gnttab_transfer` in a 32-bit domain.
pub const TRANSFER_LEN_32: usize = 16;

const _: () = assert!(size_of::<Map>() == 32 && size_of::<Unmap>() == 24);
const _: () = assert!(size_of::<CopyEnd>() == 16 && size_of::<CopyOp>() == 40 && size_of::<Transfer>() == 24);
