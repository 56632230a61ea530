//! One pollable descriptor for a device's notifiers, which can be masked for a while.
//!
//! A device served by its caller's loop gives that loop a single descriptor for life. While the set is masked, events
//! of the notifiers do not make it readable; a timer does when the mask ends.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// An epoll instance that also holds the timer of its mask.
///
/// ```
/// use event_channel::EventSet;
/// use nix::sys::eventfd::EventFd;
/// use std::os::fd::AsFd;
/// use std::time::Duration;
///
/// let notifier = EventFd::new()?;
/// let mut set = EventSet::new()?;
/// set.add(&notifier)?;
/// // The peer sends too many events: ignore them for 10 ms, then poll the ring.
/// set.mask([notifier.as_fd()], Duration::from_millis(10))?;
/// assert!(set.is_masked());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct EventSet {
    epoll: Epoll,
    timer: TimerFd,
    masked: bool,
}

impl EventSet {
    /// Creates a set without descriptors.
    ///
    /// # Errors
    /// `epoll_create1` or `timerfd_create` fails, as when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let event_set = Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, timer, masked: false };
        event_set.add(&event_set.timer)?;
        Ok(event_set)
    }

    /// Adds a descriptor to the set; does nothing if it is there already.
    ///
    /// # Errors
    /// `epoll_ctl` fails: no memory, or a descriptor that epoll does not support.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a descriptor from the set; does nothing if it is not there.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Whether the set is masked.
    pub fn is_masked(&self) -> bool {
        self.masked
    }

    /// Ignores `notifiers` for the duration of `pause`; then the set becomes readable.
    ///
    /// # Errors
    /// `timerfd_settime` fails.
    pub fn mask<'b>(
        &mut self,
        notifiers: impl IntoIterator<Item = BorrowedFd<'b>>,
        pause: Duration,
    ) -> io::Result<()> {
        notifiers.into_iter().for_each(|notifier| self.remove(notifier));
        self.masked = true;
        // Zero would disarm the timer.
        let pause = TimeSpec::from_duration(pause.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(pause), TimerSetTimeFlags::empty())?)
    }

    /// Adds `notifiers` again if the pause is over; `true` if the set is not masked.
    ///
    /// # Errors
    /// The timer cannot be read, or as [`EventSet::add`].
    pub fn unmask<'b>(&mut self, notifiers: impl IntoIterator<Item = BorrowedFd<'b>>) -> io::Result<bool> {
        if self.masked && self.timer_expired()? {
            self.masked = false;
            notifiers.into_iter().try_for_each(|notifier| self.add(notifier))?;
        }
        Ok(!self.masked)
    }

    fn timer_expired(&self) -> io::Result<bool> {
        let mut count = [0; 8];
        match nix::unistd::read(&self.timer, &mut count) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for EventSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::eventfd::EventFd;

    fn readable(event_set: &EventSet, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(event_set.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() == 1
    }

    #[test]
    fn event_set_while_masked_ignores_notifiers_until_the_timer_expires() {
        let mut event_set = EventSet::new().unwrap();
        let notifier = EventFd::new().unwrap();
        event_set.add(&notifier).unwrap();
        event_set.add(&notifier).unwrap();
        assert!(!readable(&event_set, 0));
        notifier.write(1).unwrap();
        assert!(readable(&event_set, 0));
        event_set.mask([notifier.as_fd()], Duration::from_secs(3600)).unwrap();
        assert!(!readable(&event_set, 0) && !event_set.unmask([notifier.as_fd()]).unwrap());
        event_set.mask([], Duration::ZERO).unwrap();
        assert!(readable(&event_set, 10_000), "the timer");
        assert!(event_set.unmask([notifier.as_fd()]).unwrap() && !event_set.is_masked());
        assert!(readable(&event_set, 0), "the event sent meanwhile");
        event_set.remove(&notifier);
        assert!(!readable(&event_set, 0));
    }
}
