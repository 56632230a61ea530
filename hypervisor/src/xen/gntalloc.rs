//! `/dev/xen/gntalloc`: allocates pages and grants them to another domain.
#![allow(unsafe_code)] // Structures for ioctls, and pages that another domain writes.

use super::abi;
use super::node::Node;
use super::region;
use crate::error::{Error, Result};
use grant_table::Access;
use grant_table::{EndAccess, Shared};
use nix::errno::Errno;
use ring_abi::{DomId, GrantRef};
use std::ptr::NonNull;
use std::sync::Arc;

/// The module's parameter `limit` where it cannot be read (drivers/xen/gntalloc.c).
const DEFAULT_LIMIT: usize = 1024;

/// The most pages that the module grants at a time.
pub(super) fn limit() -> usize {
    let limit = std::fs::read_to_string("/sys/module/xen_gntalloc/parameters/limit").ok();
    limit.and_then(|limit| limit.trim_ascii().parse().ok()).unwrap_or(DEFAULT_LIMIT)
}

/// The open node. One serves any number of threads.
#[derive(Debug)]
pub(super) struct Gntalloc {
    node: Node,
}

impl Gntalloc {
    pub(super) fn open() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { node: Node::open("gntalloc")? }))
    }

    /// Allocates `pages` pages and grants them to `peer`. The module's parameter `limit`, 1024 pages, bounds their
    /// number.
    pub(super) fn share(self: &Arc<Self>, peer: DomId, pages: usize, access: Access) -> Result<Shared> {
        let count = u32::try_from(pages).map_err(|_| Error::NoSpace("gntalloc: pages"))?;
        let (index, refs) = self.allocate(peer, count, access)?;
        let base = region::map(&self.node, index, pages, Access::ReadWrite).map_err(|error| {
            self.free(index, count);
            Error::io("map pages to be granted", error)
        })?;
        let grants = Granted { owner: self.clone(), base, index, count };
        // SAFETY: just mapped; only `grants` unmaps them, in `end_access`.
        Ok(unsafe { Shared::new(base, refs, access, Box::new(grants)) })
    }

    /// Allocates pages and references; returns the offset for `mmap` and the references.
    fn allocate(&self, peer: DomId, count: u32, access: Access) -> Result<(u64, Box<[GrantRef]>)> {
        let flags = if access == Access::ReadWrite { abi::WRITABLE } else { 0 };
        let head = abi::AllocHead { domid: peer.0, flags, count, index: 0 };
        const HEAD: usize = size_of::<abi::AllocHead>() / size_of::<u64>();
        // The header and the references are one structure, aligned to 8.
        let mut words = vec![0u64; HEAD + (count as usize).div_ceil(2)];
        // SAFETY: there is room for the header, which has no padding.
        unsafe { words.as_mut_ptr().cast::<abi::AllocHead>().write(head) };
        // SAFETY: the structure that this ioctl takes, with room for `count` references.
        unsafe { self.node.ioctl(abi::GNTALLOC_ALLOC, words.as_mut_ptr()) }
            .map_err(|error| refused(peer, error))?;
        let refs = words[HEAD..].iter().flat_map(|word| halves(*word)).take(count as usize);
        Ok((words[1], refs.map(GrantRef).collect()))
    }

    /// Frees pages and references. The kernel keeps pages that the peer still has mapped, and frees them once they
    /// are unmapped: they are never allocated again before.
    fn free(&self, index: u64, count: u32) {
        let mut argument = abi::Dealloc { index, count };
        // SAFETY: the structure that this ioctl takes.
        if let Err(error) = unsafe { self.node.ioctl(abi::GNTALLOC_DEALLOC, &raw mut argument) } {
            tracing::warn!(%error, index, count, "failed to free granted pages of gntalloc");
        }
    }
}

/// Granted pages, for [`Shared`].
struct Granted {
    owner: Arc<Gntalloc>,
    base: NonNull<u8>,
    index: u64,
    count: u32,
}

// SAFETY: the address is used by `end_access` only, and is valid in every thread.
unsafe impl Send for Granted {}
// SAFETY: as above; `end_access` takes `&mut self`.
unsafe impl Sync for Granted {}

impl EndAccess for Granted {
    /// The kernel quarantines pages in use without reporting it: there is no [`grant_table::Error::Grant`].
    fn end_access(&mut self) -> grant_table::Result<()> {
        // SAFETY: the `Shared` that gave out pointers to the pages is being dropped.
        unsafe { region::unmap(self.base, self.count as usize) }
            .map_err(|e| Error::io("unmap granted pages", e))?;
        self.owner.free(self.index, self.count);
        Ok(())
    }
}

fn refused(peer: DomId, error: Errno) -> Error {
    match error {
        Errno::ENOSPC | Errno::ENOMEM => Error::NoSpace("gntalloc: pages (module parameter `limit`)"),
        other => Error::io(format!("grant pages to domain {peer}"), other),
    }
}

/// The two 32-bit numbers of which `word` consists, in order of their addresses.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}
