//! One descriptor for many notifiers, with a hand over the ear for those that ring too often.
//!
//! Devices that live in somebody else's loop give it a single descriptor for life. While the ear is covered the
//! notifiers are not listened to; a timer makes the descriptor readable when they are to be looked at again.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// An epoll instance with a timer in it.
#[derive(Debug)]
pub struct EventSet {
    epoll: Epoll,
    timer: TimerFd,
    masked: bool,
}

impl EventSet {
    /// Listens to nothing.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let event_set = Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, timer, masked: false };
        event_set.add(&event_set.timer)?;
        Ok(event_set)
    }

    /// Listens to a descriptor as well, if it does not already.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Listens to it no longer. That it is gone already is as good.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Whether notifiers are not listened to just now.
    pub fn is_masked(&self) -> bool {
        self.masked
    }

    /// Stops listening to `notifiers` for this long.
    ///
    /// # Errors
    /// The system's.
    pub fn mask<'b>(
        &mut self,
        notifiers: impl IntoIterator<Item = BorrowedFd<'b>>,
        pause: Duration,
    ) -> io::Result<()> {
        notifiers.into_iter().for_each(|notifier| self.remove(notifier));
        self.masked = true;
        // A timer of zero would never go off.
        let pause = TimeSpec::from_duration(pause.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(pause), TimerSetTimeFlags::empty())?)
    }

    /// Listens to `notifiers` again if the pause is over; `true` if the ear is not covered.
    ///
    /// # Errors
    /// The system's.
    pub fn unmask<'b>(&mut self, notifiers: impl IntoIterator<Item = BorrowedFd<'b>>) -> io::Result<bool> {
        if self.masked && self.timer_is_over()? {
            self.masked = false;
            notifiers.into_iter().try_for_each(|notifier| self.add(notifier))?;
        }
        Ok(!self.masked)
    }

    fn timer_is_over(&self) -> io::Result<bool> {
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

    fn readable(event_set: &EventSet, bound: u16) -> bool {
        let mut fds = [PollFd::new(event_set.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(bound)).unwrap() == 1
    }

    #[test]
    fn a_covered_ear_hears_nothing_until_its_time() {
        let (mut event_set, notifier) = (EventSet::new().unwrap(), EventFd::new().unwrap());
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
        assert!(readable(&event_set, 0), "the notifier that rang meanwhile");
        event_set.remove(&notifier);
        assert!(!readable(&event_set, 0));
    }
}
