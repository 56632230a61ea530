// Not a core: does I/O or calls a hypervisor.

//! Commands from the control thread to the thread of a ring.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

const STOP: u32 = 1;
const RESIZED: u32 = 2;

/// Commands of the control thread to a ring's thread, with the eventfd that wakes it.
#[derive(Debug)]
pub(crate) struct Commands {
    flags: AtomicU32,
    pub(crate) event: EventFd,
}

impl Commands {
    pub(crate) fn new() -> io::Result<Commands> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Commands { flags: AtomicU32::new(0), event })
    }

    /// Tells the thread to complete the requests in flight and exit.
    pub(crate) fn stop(&self) {
        self.send(STOP);
    }

    /// Tells the thread to read the disk's size again.
    pub(crate) fn resize(&self) {
        self.send(RESIZED);
    }

    fn send(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::Release);
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.event.write(1);
    }

    #[inline]
    pub(crate) fn pending(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.flags.load(Ordering::Acquire) & STOP != 0
    }

    /// Whether the disk's size is to be read again; `true` once for each command.
    pub(crate) fn take_resized(&self) -> bool {
        let _ = self.event.read();
        self.flags.fetch_and(!RESIZED, Ordering::AcqRel) & RESIZED != 0
    }
}
