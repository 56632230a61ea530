//! Calls of C's `memmove` and `memset` by assembly.

use core::arch::asm;
use core::ffi::c_void;

unsafe extern "C" {
    fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
    fn memset(to: *mut c_void, byte: i32, len: usize) -> *mut c_void;
}

/// As [`crate::copy`].
#[inline(always)]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: a call by the C convention, whose registers are given and whose others are named as changed; without `nostack`
    // the stack is aligned for it. The function touches the caller's `len` bytes.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "call {call}@PLT",
            call = sym memmove,
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rdx") len => _,
            clobber_abi("C"),
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "bl {call}",
            call = sym memmove,
            inout("x0") to => _,
            inout("x1") from => _,
            inout("x2") len => _,
            clobber_abi("C"),
        );
    }
}

/// As [`crate::zero`].
#[inline(always)]
pub(crate) unsafe fn zero(to: *mut u8, len: usize) {
    // SAFETY: as in `copy`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "call {call}@PLT",
            call = sym memset,
            inout("rdi") to => _,
            inout("rsi") 0_usize => _,
            inout("rdx") len => _,
            clobber_abi("C"),
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "bl {call}",
            call = sym memset,
            inout("x0") to => _,
            inout("x1") 0_usize => _,
            inout("x2") len => _,
            clobber_abi("C"),
        );
    }
}
