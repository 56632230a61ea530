//! A mapped arena: a sealed memfd that holds a grant table and the pages granted by it.
#![allow(unsafe_code)] // Pointers into memory shared with another process.
#![allow(clippy::cast_ptr_alignment)] // Arenas are page-aligned, and offsets multiples of the size of the value there.

use super::entry::Entry;
use super::layout::{ENTRY_LEN, Layout};
use crate::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use ring_abi::{GrantRef, PAGE_SIZE};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// As in Xen's `grant_entry_v1`.
const _: () = assert!(size_of::<Entry>() == ENTRY_LEN);

/// A mapped arena, of this domain or of a peer.
#[derive(Debug)]
pub struct Arena {
    memory: MmapRaw,
    layout: Layout,
    file: File,
}

impl Arena {
    /// Creates an arena, sealed against being resized. A page costs memory once it is written.
    ///
    /// # Errors
    /// [`Error::Io`] if the memfd cannot be created, sized, sealed or mapped.
    pub fn create(layout: Layout) -> Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"xpv-arena", flags).map_err(|e| Error::io("memfd_create", e))?;
        let file = File::from(fd);
        file.set_len(layout.bytes() as u64).map_err(|e| Error::io("size an arena", e))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals())).map_err(|e| Error::io("seal an arena", e))?;
        Self::open(file.into(), layout)
    }

    /// Maps the arena `fd`, after checking that no other process can truncate it.
    ///
    /// # Errors
    /// [`Error::Protocol`] where the descriptor is not a sealed memfd of the size of `layout`.
    pub fn open(fd: OwnedFd, layout: Layout) -> Result<Self> {
        check(fd.as_fd(), layout)?;
        let file = File::from(fd);
        let memory = MmapOptions::new()
            .len(layout.bytes())
            .map_raw(&file)
            .map_err(|e| Error::io("map an arena", e))?;
        Ok(Self { memory, layout, file })
    }

    /// The arena's layout.
    #[inline]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The memfd, to be sent to the broker or mapped again.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// An entry of the grant table; `None` if it is beyond the table's end.
    #[inline]
    pub fn entry(&self, gref: GrantRef) -> Option<&Entry> {
        if gref.0 >= self.layout.entries() {
            return None;
        }
        // SAFETY: inside the table, 8-aligned, mapped while `self` lives; `Entry` is atomics only.
        Some(unsafe { &*self.memory.as_mut_ptr().add(gref.0 as usize * ENTRY_LEN).cast::<Entry>() })
    }

    /// The address of a grantable page; `None` if the frame number, which may come from a hostile peer, is none.
    #[inline]
    pub fn page(&self, frame: u32) -> Option<NonNull<u8>> {
        let at = self.layout.grantable(frame).then(|| frame as usize * PAGE_SIZE)?;
        // SAFETY: inside the mapping by the check.
        NonNull::new(unsafe { self.memory.as_mut_ptr().add(at) })
    }

    /// The offset of a page in the memfd, in bytes; `None` if it is not a page of this arena.
    pub(super) fn offset_of(&self, page: NonNull<u8>) -> Option<i64> {
        let at = (page.as_ptr() as usize).checked_sub(self.memory.as_ptr() as usize)?;
        (at < self.layout.bytes()).then_some(at as i64)
    }

    /// The 32-bit word at an offset in bytes, for the balloon queue.
    ///
    /// # Panics
    /// If it is outside the arena or not aligned.
    pub fn word(&self, at: usize) -> &std::sync::atomic::AtomicU32 {
        assert!(at + 4 <= self.layout.bytes() && at.is_multiple_of(4));
        // SAFETY: inside the mapping and aligned by the assertion; atomic, so a racing peer causes no data race.
        unsafe { &*self.memory.as_mut_ptr().add(at).cast() }
    }

    fn retired_entry(&self) -> &Entry {
        self.entry(Layout::RETIRED).expect("every table has the reserved entries")
    }

    /// Marks this arena as retired.
    pub(super) fn mark_retired(&self) {
        self.retired_entry().retire();
    }

    /// Whether the broker retired this arena, because its owner exited or its peer was destroyed.
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.retired_entry().is_retired()
    }
}

/// Broker: marks an arena as retired.
///
/// # Errors
/// As [`Arena::open`].
pub(super) fn retire(fd: &OwnedFd, layout: Layout) -> Result<()> {
    map_temporarily(fd, layout)?.mark_retired();
    Ok(())
}

/// Maps an arena that is not kept mapped.
pub(super) fn map_temporarily(fd: &OwnedFd, layout: Layout) -> Result<Arena> {
    Arena::open(fd.try_clone().map_err(|e| Error::io("duplicate the descriptor of an arena", e))?, layout)
}

/// Broker: unpins every page that an exited peer had mapped. Skips holes of the table, so that it does not grow.
pub(super) fn release_all(fd: &OwnedFd, layout: Layout) -> Result<()> {
    let arena = map_temporarily(fd, layout)?;
    let mut gref = 0;
    while gref < layout.entries() {
        let at = i64::from(gref) * ENTRY_LEN as i64;
        let Ok(data) = nix::unistd::lseek(&arena.file, at, nix::unistd::Whence::SeekData) else { break };
        let first = (data as u64 / ENTRY_LEN as u64).max(u64::from(gref));
        if first >= u64::from(layout.entries()) {
            break;
        }
        let page = (PAGE_SIZE / ENTRY_LEN) as u32;
        let end = (first as u32 / page + 1) * page;
        (first as u32..end).filter_map(|n| arena.entry(GrantRef(n))).for_each(Entry::release);
        gref = end;
    }
    Ok(())
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Checks that mapping a descriptor can never raise SIGBUS: it must be a memfd of ordinary pages (a huge page may be
/// unavailable), of the right size, and sealed so that it keeps that size.
pub(super) fn check(fd: BorrowedFd<'_>, layout: Layout) -> Result<()> {
    let invalid = |what: &str| Err(Error::Protocol(format!("not an arena: {what}")));
    let Ok(bits) = fcntl(fd, FcntlArg::F_GET_SEALS) else { return invalid("not sealable") };
    if !SealFlag::from_bits_retain(bits).contains(seals()) {
        return invalid("not sealed against resizing");
    }
    if SealFlag::from_bits_retain(bits).intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE)
        || !fcntl(fd, FcntlArg::F_GETFL).is_ok_and(|mode| mode & libc::O_ACCMODE == libc::O_RDWR)
    {
        return invalid("not writable");
    }
    if !fstatfs(fd).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC) {
        return invalid("not of ordinary pages");
    }
    match fstat(fd) {
        Ok(stat) if stat.st_size as u64 == layout.bytes() as u64 => Ok(()),
        Ok(stat) => invalid(&format!("{} bytes instead of {}", stat.st_size, layout.bytes())),
        Err(error) => Err(Error::io("fstat an arena", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::DomId;

    fn layout() -> Layout {
        Layout::new(64).unwrap()
    }

    fn memfd(bytes: u64, seals: SealFlag) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"test", flags).unwrap());
        file.set_len(bytes).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file.into()
    }

    fn refusal(fd: OwnedFd) -> String {
        Arena::open(fd, layout()).unwrap_err().to_string()
    }

    #[test]
    fn open_of_anything_but_a_sealed_memfd_of_the_right_size_is_refused() {
        let len = layout().bytes() as u64;
        let shrinks = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        assert!(refusal(memfd(len, shrinks)).contains("not sealed"));
        let grows = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        assert!(refusal(memfd(len, grows)).contains("not sealed"));
        assert!(refusal(memfd(len - 4096, seals())).contains("bytes instead of"));
        assert!(refusal(memfd(0, seals())).contains("bytes instead of"));
        assert!(refusal(memfd(len, seals() | SealFlag::F_SEAL_WRITE)).contains("not writable"));
        assert!(refusal(tempfile::tempfile().unwrap().into()).contains("not an arena"));
        assert!(refusal(File::open("/dev/null").unwrap().into()).contains("not an arena"));
        assert!(Arena::open(memfd(len, seals()), layout()).is_ok());
    }

    #[test]
    fn arena_resized_or_sealed_further_is_an_error() {
        let arena = Arena::create(layout()).unwrap();
        assert!(arena.file.set_len(4096).is_err());
        assert!(fcntl(&arena.file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
    }

    #[test]
    fn release_all_of_an_exited_peer_does_not_grow_the_table() {
        let layout = Layout::new(1 << 14).unwrap();
        let arena = Arena::create(layout).unwrap();
        let far = arena.entry(GrantRef(layout.entries() - 1)).unwrap();
        far.permit(DomId(1), layout.first(), false);
        far.pin(DomId(1), true).unwrap();
        let fd = OwnedFd::from(arena.file.try_clone().unwrap());
        let before = fstat(&fd).unwrap().st_blocks;
        release_all(&fd, layout).unwrap();
        assert!(far.idle());
        assert_eq!(fstat(&fd).unwrap().st_blocks, before);
        retire(&fd, layout).unwrap();
        assert!(arena.is_retired());
    }

    #[test]
    fn entry_or_page_of_an_invalid_number_is_none() {
        let arena = Arena::create(layout()).unwrap();
        assert!(arena.entry(GrantRef(layout().entries())).is_none());
        assert!(arena.entry(GrantRef(u32::MAX)).is_none());
        for frame in [0, layout().first() - 1, layout().pages(), u32::MAX] {
            assert!(arena.page(frame).is_none());
        }
    }
}
