//! `/dev/xen/gntdev`: maps pages that other domains granted to this one.
#![allow(unsafe_code)] // Structures for ioctls, and pages of other domains.

use super::abi;
use super::node::Node;
use super::region;
use crate::error::{Error, Result};
use grant_table::Access;
use grant_table::map::{INLINE_PAGES, Mapping, Page, Unmap};
use nix::errno::Errno;
use ring_abi::grant::Status;
use ring_abi::{DomId, GrantRef, PAGE_SIZE};
use smallvec::SmallVec;
use std::sync::Arc;

/// The open node. One serves any number of threads.
#[derive(Debug)]
pub(super) struct Gntdev {
    pub(super) node: Node,
}

impl Gntdev {
    pub(super) fn open() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { node: Node::open("gntdev")? }))
    }

    /// Maps `refs` of `peer` at consecutive addresses: all of them, or none.
    pub(super) fn map(self: &Arc<Self>, peer: DomId, refs: &[GrantRef], access: Access) -> Result<Mapping> {
        let pages = match self.map_pages(peer, refs, access) {
            Ok(pages) => pages,
            Err(Errno::EINVAL) => return Err(self.find_refused(peer, refs, access)),
            Err(error) => return Err(failed(peer, error)),
        };
        // SAFETY: just mapped; only `unmap` below unmaps them.
        Ok(unsafe { Mapping::new(pages, access, self.clone()) })
    }

    fn map_pages(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
    ) -> nix::Result<SmallVec<[Page; INLINE_PAGES]>> {
        if refs.is_empty() {
            return Ok(SmallVec::new());
        }
        let index = self.register(peer, refs)?;
        let base = region::map(&self.node, index, refs.len(), access).inspect_err(|_| {
            self.unregister(index, refs.len());
        })?;
        let page = |i: usize| Page {
            // SAFETY: inside the pages just mapped.
            base: unsafe { base.add(i * PAGE_SIZE) },
            token: index + (i * PAGE_SIZE) as u64,
        };
        Ok((0..refs.len()).map(page).collect())
    }

    /// Registers references with gntdev; returns the offset at which they can be mapped.
    fn register(&self, peer: DomId, refs: &[GrantRef]) -> nix::Result<u64> {
        // The header is as long as two references, and the kernel takes both as one structure.
        let mut words: SmallVec<[u64; 2 + INLINE_PAGES]> = SmallVec::with_capacity(2 + refs.len());
        let count = u32::try_from(refs.len()).map_err(|_| Errno::EINVAL)?;
        words.extend([pair(count, 0), 0]);
        words.extend(refs.iter().map(|gref| pair(peer.0.into(), gref.0)));
        // SAFETY: a `MapHead` and `count` of `MapRef` after it, aligned to 8.
        unsafe { self.node.ioctl(abi::GNTDEV_MAP, words.as_mut_ptr()) }?;
        Ok(words[1])
    }

    /// Undoes [`Self::register`], once nothing is mapped there.
    fn unregister(&self, index: u64, pages: usize) {
        let mut argument = abi::Unmap { index, count: pages as u32, pad: 0 };
        // SAFETY: the structure that this ioctl takes.
        if let Err(error) = unsafe { self.node.ioctl(abi::GNTDEV_UNMAP, &raw mut argument) } {
            tracing::warn!(%error, index, pages, "failed to unregister grant references from gntdev");
        }
    }

    /// Finds the reference that was refused, by mapping each alone: the kernel reports only that one of them was.
    fn find_refused(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Error {
        for &gref in refs {
            match self.map_pages(peer, &[gref], access) {
                Ok(page) => self.unmap(&page, access),
                Err(_) => return self.refusal(peer, gref),
            }
        }
        // The peer has changed its grant meanwhile, and can be mapped now; the mapping failed all the same.
        Error::Grant { peer, gref: refs[0], status: Status::GENERAL_ERROR }
    }

    /// Xen's reason why a reference cannot be mapped, learnt by copying a byte from it: gntdev does not report it.
    fn refusal(&self, peer: DomId, gref: GrantRef) -> Error {
        match self.read_byte(peer, gref) {
            Ok(Status::BAD_DOMAIN) => Error::NoSuchDomain(peer),
            Ok(status) if !status.is_okay() => Error::Grant { peer, gref, status },
            // It can be read, so it is a read-only grant that was to be mapped for writing.
            _ => Error::Grant { peer, gref, status: Status::GENERAL_ERROR },
        }
    }
}

impl Unmap for Gntdev {
    fn unmap(&self, pages: &[Page], _: Access) {
        let Some(first) = pages.first() else { return };
        // SAFETY: `pages` is the result of one `map_pages`, and the mapping that owned it is being dropped.
        if let Err(error) = unsafe { region::unmap(first.base, pages.len()) } {
            tracing::warn!(%error, "failed to unmap grants");
            return;
        }
        self.unregister(first.token, pages.len());
    }
}

/// Two consecutive 32-bit fields as a word.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn failed(peer: DomId, error: Errno) -> Error {
    match error {
        Errno::ENOMEM | Errno::ENOSPC => Error::NoSpace("gntdev: mapped grants"),
        Errno::ESRCH => Error::NoSuchDomain(peer),
        other => Error::io(format!("map grants of domain {peer}"), other),
    }
}
