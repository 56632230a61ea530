//! Copies of granted pages, which need no mapping: `GNTTABOP_copy`.

use crate::SharedSlice;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef};

/// The source or the destination of a copy.
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
    /// Memory of this process, or a mapping; at least as long as the copy.
    Memory(SharedSlice<'a>),
}

/// One copy: `struct gnttab_copy` (grant_table.h:472).
///
/// ```
/// use grant_table::{Access, CopyOp, CopyPtr, GrantTable, SharedSlice};
/// use hypervisor::local::Sandbox;
/// use ring_abi::DomId;
///
/// let sandbox = Sandbox::new()?;
/// let guest = sandbox.join(DomId(1))?;
/// let dom0 = sandbox.join(DomId::DOM0)?;
/// let shared = guest.share(DomId::DOM0, 1, Access::ReadOnly)?;
/// shared.slice(100, 5).unwrap().copy_from(b"hello");
///
/// let mut buffer = [0u8; 5];
/// let source = CopyPtr::Grant { domid: DomId(1), gref: shared.refs()[0], offset: 100 };
/// let dest = CopyPtr::Memory(SharedSlice::from(&mut buffer[..]));
/// let mut ops = [CopyOp::new(source, dest, 5)];
/// dom0.copy(&mut ops)?;
/// assert!(ops[0].status.is_okay());
/// assert_eq!(&buffer, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CopyOp<'a> {
    /// Where the bytes are read.
    pub source: CopyPtr<'a>,
    /// Where the bytes are written.
    pub dest: CopyPtr<'a>,
    /// Bytes; neither end may cross a page of a grant.
    pub len: u16,
    /// The outcome, written by the call.
    pub status: Status,
}

impl<'a> CopyOp<'a> {
    /// Creates an operation for [`GrantTable::copy`](crate::GrantTable::copy).
    #[inline]
    pub fn new(source: CopyPtr<'a>, dest: CopyPtr<'a>, len: u16) -> Self {
        Self { source, dest, len, status: Status::OKAY }
    }
}
