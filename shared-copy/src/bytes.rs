//! Byte by byte, each a relaxed atomic access.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// As [`crate::copy`].
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let one = |at: usize| {
        // SAFETY: the caller's `len` bytes, which others may write by atomic accesses alone.
        unsafe {
            let byte = AtomicU8::from_ptr(from.add(at).cast_mut()).load(Relaxed);
            AtomicU8::from_ptr(to.add(at)).store(byte, Relaxed);
        }
    };
    // Where they overlap no byte is written before it was read.
    if from.addr() < to.addr() {
        (0..len).rev().for_each(one);
    } else {
        (0..len).for_each(one);
    }
}

/// As [`crate::zero`].
pub(crate) unsafe fn zero(to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: as in `copy`.
        unsafe { AtomicU8::from_ptr(to.add(at)) }.store(0, Relaxed);
    }
}
