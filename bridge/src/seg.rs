//! A stretch of payload in memory that a hostile peer may be writing to at this moment.
//!
//! No `&[u8]` to such memory is ever made: a reference would promise the compiler that it stands still.
//! Bytes leave it by raw copy only, and whoever copied checks the copy.
#![allow(unsafe_code)] // raw pointers to memory shared with other processes are this module's subject

use std::marker::PhantomData;

/// Where a stretch of payload lies. Only a [`Frame`](crate::Frame) gives access to its bytes, because only
/// the frame knows that they are still mapped.
#[derive(Clone, Copy, Debug)]
pub struct Seg {
    ptr: *const u8,
    len: u32,
}

// SAFETY: a `Seg` is an address; `new`'s contract makes its bytes readable from every thread.
unsafe impl Send for Seg {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Seg {}

impl Seg {
    /// Names `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The bytes stay mapped and readable, from any thread, as long as any clone lives of the pin of the
    /// frame that this segment is pushed to (for ever, if the frame has none). They may change at any time.
    pub const unsafe fn new(ptr: *const u8, len: u32) -> Seg {
        Seg { ptr, len }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from `at`, at most `len` bytes, clamped to what there is.
    pub(crate) fn part(self, at: usize, len: usize) -> Seg {
        let at = at.min(self.len());
        let len = len.min(self.len() - at);
        Seg { ptr: self.ptr.wrapping_add(at), len: len as u32 }
    }
}

/// A stretch of a frame's bytes, lent for as long as the frame is: its private head, or a [`Seg`].
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    seg: Seg,
    frame: PhantomData<&'a ()>,
}

impl<'a> Piece<'a> {
    /// Lends private bytes.
    pub(crate) fn private(bytes: &'a [u8]) -> Piece<'a> {
        Piece { seg: Seg { ptr: bytes.as_ptr(), len: bytes.len() as u32 }, frame: PhantomData }
    }

    /// Lends a segment. The caller is its frame, and borrows itself for `'a`.
    pub(crate) fn shared(seg: Seg) -> Piece<'a> {
        Piece { seg, frame: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.seg.len()
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.seg.is_empty()
    }

    /// Where the bytes lie, for an `iovec` or a grant copy. They may change while being read.
    pub fn as_ptr(&self) -> *const u8 {
        self.seg.ptr
    }

    /// The part from `at`, at most `len` bytes, clamped to what there is.
    pub fn part(self, at: usize, len: usize) -> Piece<'a> {
        Piece { seg: self.seg.part(at, len), frame: PhantomData }
    }

    /// Copies the bytes to the front of `to`; gives how many were copied: the shorter of the two.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len().min(to.len());
        // SAFETY: `to` is private and `len` bytes or longer.
        unsafe { self.part(0, len).copy_to_raw(to.as_mut_ptr()) };
        len
    }

    /// Copies all bytes to `to`, which may itself be shared memory.
    ///
    /// # Safety
    /// `to` is writable for `len()` bytes and does not overlap them.
    pub unsafe fn copy_to_raw(&self, to: *mut u8) {
        // SAFETY: the source is readable by `Seg::new`'s contract while the frame is borrowed; the
        // destination by ours. Neither side is behind a reference that promises it stands still.
        unsafe { std::ptr::copy_nonoverlapping(self.seg.ptr, to, self.len()) }
    }
}
