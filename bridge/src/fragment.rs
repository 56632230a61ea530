//! A contiguous part of a payload, in memory that a hostile peer may be writing to.
//!
//! No `&[u8]` to such memory is ever made: a reference would promise the compiler that the bytes do not change. Bytes
//! are read by raw copy only, and checks are made on the copy.
#![allow(unsafe_code)] // raw pointers to memory shared with other processes are this module's subject

use std::marker::PhantomData;

/// The address of a contiguous part of a payload. Only a [`Frame`](crate::Frame) gives access to its bytes, because the
/// frame keeps them mapped.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    ptr: *const u8,
    len: u32,
}

// SAFETY: a `Fragment` is an address; `new`'s contract makes its bytes readable from every thread.
unsafe impl Send for Fragment {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for Fragment {}

impl Fragment {
    /// Makes a fragment of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The bytes must stay mapped and readable, from any thread, as long as any clone lives of the pin of the frame
    /// that this fragment is pushed to (for ever, if the frame has none). They may change at any time.
    pub const unsafe fn new(ptr: *const u8, len: u32) -> Fragment {
        Fragment { ptr, len }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the fragment has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from `at`, of at most `len` bytes, clamped to the fragment's length.
    pub(crate) fn part(self, at: usize, len: usize) -> Fragment {
        let at = at.min(self.len());
        let len = len.min(self.len() - at);
        Fragment { ptr: self.ptr.wrapping_add(at), len: len as u32 }
    }
}

/// A contiguous part of a frame's bytes, borrowed from the frame: of its private head or of a [`Fragment`].
#[derive(Clone, Copy, Debug)]
pub struct FragmentRef<'a> {
    fragment: Fragment,
    frame: PhantomData<&'a ()>,
}

impl<'a> FragmentRef<'a> {
    /// Makes a reference to private bytes.
    pub(crate) fn private(bytes: &'a [u8]) -> FragmentRef<'a> {
        FragmentRef {
            fragment: Fragment { ptr: bytes.as_ptr(), len: bytes.len() as u32 },
            frame: PhantomData,
        }
    }

    /// Makes a reference to a fragment. The caller is its frame, which is borrowed for `'a`.
    pub(crate) fn shared(fragment: Fragment) -> FragmentRef<'a> {
        FragmentRef { fragment, frame: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.fragment.len()
    }

    /// Whether the fragment has no bytes.
    pub fn is_empty(&self) -> bool {
        self.fragment.is_empty()
    }

    /// The address of the bytes, for an `iovec` or a grant copy. The bytes may change while they are read.
    pub fn as_ptr(&self) -> *const u8 {
        self.fragment.ptr
    }

    /// The part from `at`, of at most `len` bytes, clamped to the fragment's length.
    pub fn part(self, at: usize, len: usize) -> FragmentRef<'a> {
        FragmentRef { fragment: self.fragment.part(at, len), frame: PhantomData }
    }

    /// Copies the bytes to the start of `to`; returns the number of bytes copied, the shorter length of the two.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len().min(to.len());
        // SAFETY: `to` is private and `len` bytes or longer.
        unsafe { self.part(0, len).copy_to_raw(to.as_mut_ptr()) };
        len
    }

    /// Copies all bytes to `to`, which may itself be shared memory.
    ///
    /// # Safety
    /// `to` is writable for `len()` bytes.
    pub unsafe fn copy_to_raw(&self, to: *mut u8) {
        // SAFETY: the source is readable by `Fragment::new`'s contract while the frame is borrowed; the destination is
        // writable by this function's contract.
        unsafe { shared_copy::copy(self.fragment.ptr, to, self.len()) }
    }
}
