//! Operations on granted pages that need no mapping: copy and transfer.

use ring_abi::{DomId, GrantRef};
use vm_memory::VolatileSlice;

/// Where a copy comes from or goes to.
#[derive(Clone, Copy, Debug)]
pub enum CopyPtr<'a> {
    /// Part of a granted page: `GNTCOPY_{source,dest}_gref`.
    Grant {
        /// The granting domain.
        domid: DomId,
        /// Its reference.
        gref: GrantRef,
        /// First byte in the page.
        offset: u16,
    },
    /// Our own memory, or a mapping; its length is not less than the copy's.
    Memory(VolatileSlice<'a>),
}

/// One copy: `struct gnttab_copy` (grant_table.h:472).
#[derive(Clone, Copy, Debug)]
pub struct CopyOp<'a> {
    /// From here.
    pub source: CopyPtr<'a>,
    /// To here.
    pub dest: CopyPtr<'a>,
    /// Bytes; neither end may cross a page of a grant.
    pub len: u16,
    /// `GNTST_*`, written by the call: 0 where the copy was made.
    pub status: i16,
}

impl<'a> CopyOp<'a> {
    /// A copy not yet made.
    #[inline]
    pub fn new(source: CopyPtr<'a>, dest: CopyPtr<'a>, len: u16) -> Self {
        Self { source, dest, len, status: 0 }
    }
}

/// One page flip: `struct gnttab_transfer` (grant_table.h:447). The page leaves its owner for good.
#[derive(Clone, Copy, Debug)]
pub struct TransferOp {
    /// The page given up: a frame number that this domain owns in the peer's arena.
    pub frame: u64,
    /// Who accepts it.
    pub domid: DomId,
    /// The peer's entry that accepts a transfer.
    pub gref: GrantRef,
    /// `GNTST_*`, written by the call.
    pub status: i16,
}
