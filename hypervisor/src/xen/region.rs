//! Pages mapped from a device node's descriptor.
#![allow(unsafe_code)] // mmap and munmap.

use super::node::Node;
use grant_table::Access;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use ring_abi::PAGE_SIZE;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Maps `pages` pages of `node` from `offset` on, an offset that an ioctl returned.
pub(super) fn map(node: &Node, offset: u64, pages: usize, access: Access) -> nix::Result<NonNull<u8>> {
    let protection = match access {
        Access::ReadOnly => ProtFlags::PROT_READ,
        Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
    };
    let length = pages.checked_mul(PAGE_SIZE).and_then(NonZeroUsize::new).ok_or(nix::Error::EINVAL)?;
    let offset = i64::try_from(offset).map_err(|_| nix::Error::EOVERFLOW)?;
    // SAFETY: the kernel chooses the address, so no other mapping is replaced.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &node.file, offset) }?;
    Ok(base.cast())
}

/// Unmaps what [`map`] mapped.
///
/// # Safety
/// No reference to these pages is used afterwards.
pub(super) unsafe fn unmap(base: NonNull<u8>, pages: usize) -> nix::Result<()> {
    // SAFETY: the caller's contract.
    unsafe { munmap(base.cast(), pages * PAGE_SIZE) }
}
