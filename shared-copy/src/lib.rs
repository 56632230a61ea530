//! Copies of memory that another process, guest or thread may write at the same time.
//!
//! `core::ptr::copy` of such memory is a data race, which the language leaves undefined: the compiler may assume that the bytes do
//! not change while it reads them. Here C's `memmove` and `memset` are called by assembly, which the compiler does not look into:
//! what they read and write is what the processor makes of a race, bytes that are old, new or torn. On processors without that
//! assembly, and under Miri, which looks into none, each byte is a relaxed atomic access.
//!
//! ```
//! let from = *b"a frame of a guest";
//! let mut to = [0; 18];
//! // SAFETY: both have as many bytes.
//! unsafe { shared_copy::copy(from.as_ptr(), to.as_mut_ptr(), from.len()) };
//! assert_eq!(from, to);
//! ```
#![no_std]
#![allow(unsafe_code)] // Raw pointers into memory shared with others are this crate's subject.

#[cfg(any(test, miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod bytes;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod calls;

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
use bytes as imp;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
use calls as imp;

/// Copies `len` bytes, as `memmove`: the two may overlap.
///
/// # Safety
/// `from` is readable and `to` is writable for `len` bytes. Others may read and write both meanwhile, unless by a Rust reference.
#[inline(always)]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller.
    unsafe { imp::copy(from, to, len) }
}

/// Zeroes `len` bytes, as `memset`.
///
/// # Safety
/// `to` is writable for `len` bytes. Others may read and write them meanwhile, unless by a Rust reference.
#[inline(always)]
pub unsafe fn zero(to: *mut u8, len: usize) {
    // SAFETY: by the caller.
    unsafe { imp::zero(to, len) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;
    use std::vec::Vec;

    type Copy = unsafe fn(*const u8, *mut u8, usize);
    type Zero = unsafe fn(*mut u8, usize);
    const COPIES: [Copy; 2] = [super::imp::copy, super::bytes::copy];
    const ZEROES: [Zero; 2] = [super::imp::zero, super::bytes::zero];

    proptest! {
        #[test]
        fn copy_inside_one_memory_is_that_of_a_slice(len in 0usize..300, from in 0usize..300, to in 0usize..300) {
            let bytes: Vec<u8> = (0..600u32).map(|n| (n * 7) as u8).collect();
            let mut expected = bytes.clone();
            expected.copy_within(from..from + len, to);
            for copy in COPIES {
                let mut found = bytes.clone();
                let base = found.as_mut_ptr();
                // SAFETY: 600 bytes are there, and both ranges end before.
                unsafe { copy(base.add(from), base.add(to), len) };
                prop_assert_eq!(&found, &expected);
            }
        }

        #[test]
        fn zeroed_are_these_bytes_alone(len in 0usize..300, at in 0usize..300) {
            for zero in ZEROES {
                let mut found = [9u8; 600];
                // SAFETY: 600 bytes are there, and the range ends before.
                unsafe { zero(found.as_mut_ptr().add(at), len) };
                let expected: Vec<u8> = (0..600).map(|n| if (at..at + len).contains(&n) { 0 } else { 9 }).collect();
                prop_assert_eq!(found.as_slice(), expected);
            }
        }
    }
}
