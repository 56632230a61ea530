//! Shared memory by copy: the only place that touches bytes which a peer may be writing at the same time.
//!
//! Every access is a relaxed atomic load or store of a whole word, so that a racing peer can change what is
//! read but can never make the read undefined; nothing here ever lends a reference to a slot's bytes. Order
//! between words comes from the fences in [`crate::ring`].
#![allow(unsafe_code)] // Raw pointers into memory shared with another domain.

mod bytes;
mod values;

use crate::sync::AtomicU32;
use core::marker::PhantomData;
use core::ptr::NonNull;
#[cfg(not(any(loom, miri)))]
use core::sync::atomic::AtomicU64 as Word64;
use core::sync::atomic::Ordering::Relaxed;

pub use values::WireValue;

/// The four live words at the start of a ring page: `struct NAME_sring` (ring.h:157).
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    pub(crate) req_prod: AtomicU32,
    pub(crate) req_event: AtomicU32,
    pub(crate) rsp_prod: AtomicU32,
    pub(crate) rsp_event: AtomicU32,
}

#[cfg(loom)]
impl Header {
    /// For the model checker, whose atomics are larger than what they stand for: indexes that are in no page.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let [req_prod, req_event, rsp_prod, rsp_event] = [0, 1, 0, 1].map(AtomicU32::new);
        Self { req_prod, req_event, rsp_prod, rsp_event }
    }
}

/// Bytes before the first slot: four indexes, `pvt` and padding (ring.h:157).
pub const HEADER_LEN: usize = 64;

/// Memory that holds a ring, and whatever keeps it mapped.
///
/// # Safety
/// For the life of the value `base()` points at `len()` readable and writable bytes, at least a page, 8-aligned, that are
/// accessed only through this module or by the peer. An access never fails (SIGBUS): a file's bytes are reserved, and nobody
/// makes it shorter.
#[allow(clippy::len_without_is_empty)] // It never is.
pub unsafe trait Memory {
    /// Start of the first page.
    fn base(&self) -> NonNull<u8>;
    /// Bytes, a multiple of the page size.
    fn len(&self) -> usize;
    /// The ring's indexes.
    fn header(&self) -> &Header {
        // SAFETY: the trait promises a page, aligned, for the life of `self`; `Header` is atomics only, so that a racing peer is no data race.
        unsafe { self.base().cast::<Header>().as_ref() }
    }
}

/// One slot of a ring: `len` bytes that the peer may write at any time.
#[derive(Debug)]
pub struct Slot<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a Header>,
}

impl Slot<'_> {
    /// # Safety
    /// `base` points at `len` bytes of shared memory, aligned to 4, that outlive the slot.
    #[inline(always)]
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// # Safety
    /// `base` points at memory of which `len` bytes from `offset` on are as [`Slot::new`] wants them.
    #[inline(always)]
    pub(crate) unsafe fn within(base: NonNull<u8>, offset: usize, len: usize) -> Self {
        // SAFETY: by the caller. Under loom an atomic of its own stands for each 32-bit word.
        unsafe {
            #[cfg(not(loom))]
            let base = base.add(offset);
            #[cfg(loom)]
            let base = base.cast::<AtomicU32>().add(offset / 4).cast();
            Self::new(base, len)
        }
    }

    /// Where the slot begins.
    #[inline(always)]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Asks for the cache lines of a slot larger than one, to write them: the reader of a slot writes it next, and
    /// a line that is fetched only to be read must be asked for again. Small slots share lines, and gain nothing.
    #[inline(always)]
    pub(crate) fn prefetch_for_write(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
        if self.len > 64 {
            let slot = self.base.as_ptr();
            // SAFETY: a hint, which touches no memory that the program can see.
            unsafe {
                core::arch::asm!(
                    "prefetchw [{slot}]",
                    "prefetchw [{slot} + 64]",
                    slot = in(reg) slot,
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }

    /// Checked address of the word at `offset`; the check folds away where both are known to the compiler.
    #[cfg(not(loom))]
    #[inline(always)]
    fn word<T>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.len, "word outside the slot");
        let word = self.base.as_ptr().wrapping_add(offset).cast::<T>();
        debug_assert!(word.is_aligned());
        // SAFETY: inside the slot by the assertion; T is an atomic word; alignment follows from the layouts,
        // whose offsets are multiples of their words' sizes.
        unsafe { &*word }
    }

    /// Bytes of the slot.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(not(loom))]
    #[inline(always)]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        self.word(offset)
    }

    #[cfg(loom)]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.len, "word outside the slot");
        // SAFETY: inside the slot, for each 32-bit word of which there is an atomic.
        unsafe { self.base.cast::<AtomicU32>().add(offset / 4).as_ref() }
    }

    /// The 32-bit word at `offset` bytes.
    #[inline(always)]
    pub fn load32(&self, offset: usize) -> u32 {
        self.word32(offset).load(Relaxed)
    }

    /// The 64-bit word at `offset` bytes; the slot must be 8-aligned.
    #[cfg(not(any(loom, miri)))]
    #[inline(always)]
    pub fn load64(&self, offset: usize) -> u64 {
        self.word::<Word64>(offset).load(Relaxed)
    }

    /// Stores a 32-bit word at `offset` bytes.
    #[inline(always)]
    pub fn store32(&self, offset: usize, value: u32) {
        self.word32(offset).store(value, Relaxed);
    }

    /// Stores a 64-bit word at `offset` bytes; the slot must be 8-aligned.
    #[cfg(not(any(loom, miri)))]
    #[inline(always)]
    pub fn store64(&self, offset: usize, value: u64) {
        self.word::<Word64>(offset).store(value, Relaxed);
    }

    /// Two words, for loom and Miri know atomics of one size only in one place.
    #[cfg(any(loom, miri))]
    #[allow(missing_docs)]
    pub fn load64(&self, offset: usize) -> u64 {
        u64::from(self.load32(offset)) | u64::from(self.load32(offset + 4)) << 32
    }

    #[cfg(any(loom, miri))]
    #[allow(missing_docs)]
    pub fn store64(&self, offset: usize, value: u64) {
        self.store32(offset, value as u32);
        self.store32(offset + 4, (value >> 32) as u32);
    }
}
