//! Memory that another domain may write at any time, as address and length.
#![allow(unsafe_code)] // Pointers into memory shared with another domain.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use ring_abi::shm::Slot;

/// Bytes that another domain may read and write at the same time. They are copied in and out; no reference to them is
/// ever made. With std, [`vm_memory::VolatileSlice`] is made of it, and the reverse.
///
/// What is read may be torn: a peer, or another thread of this process, may write meanwhile. A slice of a page that is
/// mapped for reading only is not to be written: on Xen such a write is a fault of this process.
///
/// ```
/// use grant_table::SharedSlice;
///
/// let mut memory = [0; 8];
/// let slice = SharedSlice::from(&mut memory[..]);
/// slice.subslice(2, 3).unwrap().copy_from(b"xen");
/// let mut bytes = [0; 4];
/// slice.copy_to(&mut bytes);
/// assert_eq!(&bytes, b"\0\0xe");
/// assert!(slice.subslice(6, 3).is_none());
/// ```
#[derive(Clone, Copy)]
pub struct SharedSlice<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: the memory is valid in every thread for the lifetime; it is copied from and to by relaxed atomic accesses.
unsafe impl Send for SharedSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    /// Makes a slice of `len` bytes at `base`, and one of no bytes if `base` is null.
    ///
    /// # Safety
    /// The bytes stay mapped for `'a`, readable, and writable for whoever writes to this slice; no reference to them
    /// exists meanwhile that a write would contradict.
    #[inline]
    pub const unsafe fn new(base: *mut u8, len: usize) -> Self {
        match NonNull::new(base) {
            Some(base) => Self { base, len, memory: PhantomData },
            None => Self { base: NonNull::dangling(), len: 0, memory: PhantomData },
        }
    }

    /// Bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte; valid for `'a`.
    #[inline]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// `len` bytes from `offset` on; `None` if they are not inside.
    #[inline]
    pub fn subslice(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside this slice.
        Some(unsafe { Self::new(self.as_ptr().add(offset), len) })
    }

    /// Copies the first bytes out: as many as both have.
    #[inline]
    pub fn copy_to(&self, into: &mut [u8]) {
        let len = self.len.min(into.len());
        self.words().load_bytes(0, &mut into[..len]);
    }

    /// Copies bytes in, to the start: as many as both have.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) {
        let len = self.len.min(from.len());
        self.words().store_bytes(0, &from[..len]);
    }

    fn words(&self) -> Slot<'a> {
        // SAFETY: the memory is valid for `'a`. Strings of bytes need no alignment, but under Miri and loom, which know
        // atomics of one size only in one place.
        unsafe { Slot::new(self.base, self.len) }
    }
}

impl<'a> From<&'a mut [u8]> for SharedSlice<'a> {
    #[inline]
    fn from(bytes: &'a mut [u8]) -> Self {
        // SAFETY: borrowed for `'a`.
        unsafe { Self::new(bytes.as_mut_ptr(), bytes.len()) }
    }
}

#[cfg(feature = "std")]
impl<'a> From<vm_memory::VolatileSlice<'a>> for SharedSlice<'a> {
    #[inline]
    fn from(slice: vm_memory::VolatileSlice<'a>) -> Self {
        // SAFETY: valid for `'a`, as the slice is.
        unsafe { Self::new(slice.ptr_guard_mut().as_ptr(), slice.len()) }
    }
}

#[cfg(feature = "std")]
impl<'a> From<SharedSlice<'a>> for vm_memory::VolatileSlice<'a> {
    #[inline]
    fn from(slice: SharedSlice<'a>) -> Self {
        // SAFETY: valid for `'a`, and accessed by no reference.
        unsafe { Self::new(slice.as_ptr(), slice.len()) }
    }
}

impl fmt::Debug for SharedSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSlice({} bytes at {:p})", self.len, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_any_offset_and_length_are_copied_in_and_out() {
        for offset in 0..9 {
            for len in 0..20 {
                let mut memory = [0u8; 32];
                let pattern: [u8; 20] = core::array::from_fn(|n| n as u8 + 1);
                let slice = SharedSlice::from(&mut memory[..]);
                let part = slice.subslice(offset, len).unwrap();
                part.copy_from(&pattern);
                let mut read = [0; 20];
                part.copy_to(&mut read);
                assert_eq!(read[..len], pattern[..len]);
                assert!(memory[..offset].iter().chain(&memory[offset + len..]).all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn subslice_beyond_the_end_is_none() {
        let mut memory = [0u8; 8];
        let slice = SharedSlice::from(&mut memory[..]);
        assert!(slice.subslice(8, 0).is_some_and(|end| end.is_empty()));
        for (offset, len) in [(0, 9), (8, 1), (9, 0), (usize::MAX, 1), (1, usize::MAX)] {
            assert!(slice.subslice(offset, len).is_none(), "{offset} {len}");
        }
    }
}
