//! What a kernel has of its own: memory, a console, and a way to stop.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

struct Malloc;

// SAFETY: memory of the C library, which is aligned as asked for and belongs to the caller until it is freed.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let align = layout.align().max(size_of::<usize>());
        // SAFETY: an alignment that is a power of two and at least that of a pointer.
        unsafe { libc::memalign(align, layout.size()).cast() }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _layout: Layout) {
        // SAFETY: what `alloc` returned.
        unsafe { libc::free(memory.cast()) }
    }
}

#[global_allocator]
static MALLOC: Malloc = Malloc;

/// Writes text to the console.
pub(crate) fn print(text: &str) {
    // SAFETY: as many readable bytes as the text has. A console that is gone is no error.
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    print(&alloc::format!("{info}\n"));
    // SAFETY: ends the program.
    unsafe { libc::abort() }
}

/// Referenced by the precompiled `alloc`, which can unwind; this program aborts instead. Targets for kernels, such as
/// x86_64-unknown-none, need neither of these.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: ends the program.
    unsafe { libc::abort() }
}
