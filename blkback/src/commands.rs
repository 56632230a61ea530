// Not a core: does I/O or calls a hypervisor.

//! Commands from the control thread to the thread of a ring.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::engine::DiskInfo;
use crate::throttle::Throttle;

const STOP: u32 = 1;
const LOOK: u32 = 2;
const ADVERTISED: u32 = 4;
const THROTTLE: u32 = 8;

/// Commands of the control thread to a ring's thread, with the eventfd that wakes it.
#[derive(Debug)]
pub(crate) struct Commands {
    flags: AtomicU32,
    /// The disk's properties that were advertised last.
    info: Mutex<DiskInfo>,
    /// The limits that were set last.
    throttle: Mutex<Option<Arc<Throttle>>>,
    pub(crate) event: EventFd,
}

impl Commands {
    /// For the thread of a ring whose frontend was told these properties of the disk.
    pub(crate) fn new(info: DiskInfo) -> io::Result<Commands> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Commands { flags: AtomicU32::new(0), info: Mutex::new(info), throttle: Mutex::default(), event })
    }

    /// Tells the thread to complete the requests in flight and exit.
    pub(crate) fn stop(&self) {
        self.send(STOP);
    }

    /// Tells the thread to read the disk's size again.
    pub(crate) fn look(&self) {
        self.send(LOOK);
    }

    /// Tells the thread that these properties are advertised: requests are checked against them from here on.
    pub(crate) fn advertised(&self, info: DiskInfo) {
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = info;
        self.send(ADVERTISED);
    }

    /// Tells the thread that these limits hold from here on.
    pub(crate) fn set_throttle(&self, throttle: Option<Arc<Throttle>>) {
        *self.throttle.lock().unwrap_or_else(PoisonError::into_inner) = throttle;
        self.send(THROTTLE);
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

    /// Takes the event that has woken the thread, which then looks for commands. To be called whenever the event is readable: it may
    /// come after the command was taken.
    pub(crate) fn take_event(&self) {
        // Fails only without an event.
        let _ = self.event.read();
    }

    /// Whether the disk's size is to be read again; `true` once for each command.
    pub(crate) fn take_look(&self) -> bool {
        self.flags.fetch_and(!LOOK, Ordering::AcqRel) & LOOK != 0
    }

    /// The properties that were advertised, if that was since the last call.
    pub(crate) fn take_advertised(&self) -> Option<DiskInfo> {
        let is_new = self.flags.fetch_and(!ADVERTISED, Ordering::AcqRel) & ADVERTISED != 0;
        is_new.then(|| *self.info.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The limits that were set, if that was since the last call.
    pub(crate) fn take_throttle(&self) -> Option<Option<Arc<Throttle>>> {
        let is_new = self.flags.fetch_and(!THROTTLE, Ordering::AcqRel) & THROTTLE != 0;
        is_new.then(|| self.throttle.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    fn is_readable(commands: &Commands) -> bool {
        let mut fds = [PollFd::new(commands.event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    /// Else the thread would spin until the next command.
    #[test]
    fn event_of_a_command_that_was_taken_before_it_wakes_the_thread_once() {
        let commands = Commands::new(DiskInfo::new(8)).unwrap();
        commands.flags.fetch_or(ADVERTISED, Ordering::Release);
        assert_eq!(commands.take_advertised(), Some(DiskInfo::new(8)));
        assert_eq!(commands.take_advertised(), None);
        commands.event.write(1).unwrap();
        assert!(is_readable(&commands));
        commands.take_event();
        assert!(!is_readable(&commands) && !commands.pending());
    }
}
