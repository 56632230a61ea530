//! Shared memory by copy: the only place that touches octets which a peer may be writing at the same time.
//!
//! Every access is a relaxed atomic load or store of a whole word, so that a racing peer can change what is
//! read but can never make the read undefined; nothing here ever lends a reference to a slot's octets. Order
//! between words comes from the fences in [`crate::ring`].
#![allow(unsafe_code)] // Raw pointers into memory shared with another domain.

mod values;

use crate::sync::AtomicU32;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32 as Word32, AtomicU64 as Word64, Ordering::Relaxed};

pub use values::Octets8;

/// The four live words at the start of a ring page: `struct NAME_sring` (ring.h:157).
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    pub(crate) req_prod: AtomicU32,
    pub(crate) req_event: AtomicU32,
    pub(crate) rsp_prod: AtomicU32,
    pub(crate) rsp_event: AtomicU32,
}

/// Octets before the first slot: four indexes, `pvt` and padding (ring.h:157).
pub const HEADER_LEN: usize = 64;

/// Memory that holds a ring, and whatever keeps it mapped.
///
/// # Safety
/// For the life of the value `base()` points at `len()` readable and writable octets, 8-aligned, that are
/// accessed only through this module or by the peer.
pub unsafe trait Memory {
    /// Start of the first page.
    fn base(&self) -> NonNull<u8>;
    /// Octets, a multiple of the page size.
    fn len(&self) -> usize;
    /// Whether there is no memory at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The ring's indexes.
    fn header(&self) -> &Header {
        // SAFETY: the trait promises `len() >= HEADER_LEN` octets (checked when a ring is made), aligned, for
        // the life of `self`; `Header` is atomics only, so that a racing peer is no data race.
        unsafe { self.base().cast::<Header>().as_ref() }
    }
}

/// One slot of a ring: `len` octets that the peer may write at any time.
#[derive(Debug)]
pub struct Slot<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a Header>,
}

impl Slot<'_> {
    /// # Safety
    /// `base` points at `len` octets of shared memory, aligned to 4, that outlive the slot.
    #[inline(always)]
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Where the slot begins.
    #[inline(always)]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Asks for the slot's first cache line for writing: whoever reads a slot writes it next, and a line that is first
    /// fetched to be read must be asked for again.
    #[inline(always)]
    pub(crate) fn claim(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri), not(loom)))]
        // SAFETY: a hint, which touches no memory that the program can see.
        unsafe {
            core::arch::asm!("prefetchw [{}]", in(reg) self.base.as_ptr(), options(nostack, preserves_flags, readonly));
        }
    }

    /// Checked address of the word at `offset`; the check folds away where both are known to the compiler.
    #[inline(always)]
    fn word<T>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.len, "word outside the slot");
        let word = self.base.as_ptr().wrapping_add(offset).cast::<T>();
        debug_assert!(word.is_aligned());
        // SAFETY: inside the slot by the assertion; T is an atomic word; alignment follows from the layouts,
        // whose offsets are multiples of their words' sizes.
        unsafe { &*word }
    }

    /// The 32-bit word at `offset` octets.
    #[inline(always)]
    pub fn load32(&self, offset: usize) -> u32 {
        self.word::<Word32>(offset).load(Relaxed)
    }

    /// The 64-bit word at `offset` octets; the slot must be 8-aligned.
    #[inline(always)]
    pub fn load64(&self, offset: usize) -> u64 {
        self.word::<Word64>(offset).load(Relaxed)
    }

    /// Stores a 32-bit word at `offset` octets.
    #[inline(always)]
    pub fn store32(&self, offset: usize, value: u32) {
        self.word::<Word32>(offset).store(value, Relaxed);
    }

    /// Stores a 64-bit word at `offset` octets; the slot must be 8-aligned.
    #[inline(always)]
    pub fn store64(&self, offset: usize, value: u64) {
        self.word::<Word64>(offset).store(value, Relaxed);
    }
}
