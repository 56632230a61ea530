//! `/dev/xen/gntdev`: maps pages that other domains granted to us.
#![allow(unsafe_code)] // Structures for ioctls, and pages of other domains.

use super::abi;
use super::node::Node;
use super::region;
use crate::error::{Error, Result};
use crate::map::{INLINE_PAGES, Mapping, Page, Unmap};
use crate::{Access, DomId, GrantRef, PAGE_SIZE};
use nix::errno::Errno;
use smallvec::SmallVec;
use std::sync::Arc;

/// `GNTST_general_error` (grant_table.h:661): Xen's word for almost every refusal.
const GENERAL_ERROR: i16 = -1;
/// `GNTST_bad_domain`.
const BAD_DOMAIN: i16 = -2;

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
            Err(Errno::EINVAL) => return Err(self.blame(peer, refs, access)),
            Err(error) => return Err(failed(peer, error)),
        };
        // SAFETY: just mapped; `unmap` below is the only one to unmap them.
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
        let index = self.announce(peer, refs)?;
        let base = region::map(&self.node, index, refs.len(), access).inspect_err(|_| {
            self.forget(index, refs.len());
        })?;
        let page = |i: usize| Page {
            // SAFETY: inside the pages just mapped.
            base: unsafe { base.add(i * PAGE_SIZE) },
            token: index + (i * PAGE_SIZE) as u64,
        };
        Ok((0..refs.len()).map(page).collect())
    }

    /// Tells the kernel the references; gives the offset at which they can be mapped.
    fn announce(&self, peer: DomId, refs: &[GrantRef]) -> nix::Result<u64> {
        // The header is as long as two references, and the kernel wants both in one piece.
        let mut words: SmallVec<[u64; 2 + INLINE_PAGES]> = SmallVec::with_capacity(2 + refs.len());
        let count = u32::try_from(refs.len()).map_err(|_| Errno::EINVAL)?;
        words.extend([pair(count, 0), 0]);
        words.extend(refs.iter().map(|gref| pair(peer.0.into(), gref.0)));
        // SAFETY: a `MapHead` and `count` of `MapRef` after it, aligned to 8.
        unsafe { self.node.ioctl(abi::GNTDEV_MAP, words.as_mut_ptr()) }?;
        Ok(words[1])
    }

    /// Undoes [`Self::announce`], once nothing is mapped there.
    fn forget(&self, index: u64, pages: usize) {
        let mut order = abi::Unmap { index, count: pages as u32, pad: 0 };
        // SAFETY: the structure that the number names.
        if let Err(error) = unsafe { self.node.ioctl(abi::GNTDEV_UNMAP, &raw mut order) } {
            tracing::warn!(%error, index, pages, "gntdev keeps references that are no longer mapped");
        }
    }

    /// Which reference it was, the kernel having said only that one was refused: tries each alone.
    fn blame(&self, peer: DomId, refs: &[GrantRef], access: Access) -> Error {
        for &gref in refs {
            match self.map_pages(peer, &[gref], access) {
                Ok(page) => self.unmap(&page, access),
                Err(_) => return self.why(peer, gref),
            }
        }
        // The peer made it good meanwhile: it is the peer's doing all the same.
        Error::Grant { peer, gref: refs[0], status: GENERAL_ERROR }
    }

    /// Xen's own reason why a reference cannot be mapped, got by copying an byte from it.
    fn why(&self, peer: DomId, gref: GrantRef) -> Error {
        match self.read_byte(peer, gref) {
            Ok(BAD_DOMAIN) => Error::NoSuchDomain(peer),
            Ok(status) if status < 0 => Error::Grant { peer, gref, status },
            // It can be read: we wanted to write.
            _ => Error::Grant { peer, gref, status: GENERAL_ERROR },
        }
    }
}

impl Unmap for Gntdev {
    fn unmap(&self, pages: &[Page], _: Access) {
        let Some(first) = pages.first() else { return };
        // SAFETY: `pages` is what one `map_pages` gave, and the mapping that owned it is being dropped.
        if let Err(error) = unsafe { region::unmap(first.base, pages.len()) } {
            tracing::warn!(%error, "grants stay mapped");
            return;
        }
        self.forget(first.token, pages.len());
    }
}

/// Two 32-bit fields that follow each other.
fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first);
    bytes[4..].copy_from_slice(&second);
    u64::from_ne_bytes(bytes)
}

fn failed(peer: DomId, error: Errno) -> Error {
    match error {
        Errno::ENOMEM | Errno::ENOSPC => Error::NoSpace("gntdev: grants to be mapped at once"),
        Errno::ESRCH => Error::NoSuchDomain(peer),
        other => Error::io(format!("mapping grants of domain {peer}"), other),
    }
}
