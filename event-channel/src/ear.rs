//! One descriptor for many doorbells, with a hand over the ear for those that ring too often.
//!
//! Devices that live in somebody else's loop give it a single descriptor for life. While the ear is covered the
//! doorbells are not listened to; a timer makes the descriptor readable when they are to be looked at again.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// An epoll instance with a timer in it.
#[derive(Debug)]
pub struct Ear {
    epoll: Epoll,
    timer: TimerFd,
    covered: bool,
}

impl Ear {
    /// Listens to nothing.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let ear = Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, timer, covered: false };
        ear.add(&ear.timer)?;
        Ok(ear)
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

    /// Whether doorbells are not listened to just now.
    pub fn is_covered(&self) -> bool {
        self.covered
    }

    /// Stops listening to `bells` for this long.
    ///
    /// # Errors
    /// The system's.
    pub fn cover<'b>(
        &mut self,
        bells: impl IntoIterator<Item = BorrowedFd<'b>>,
        pause: Duration,
    ) -> io::Result<()> {
        bells.into_iter().for_each(|bell| self.remove(bell));
        self.covered = true;
        // A timer of zero would never go off.
        let pause = TimeSpec::from_duration(pause.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(pause), TimerSetTimeFlags::empty())?)
    }

    /// Listens to `bells` again if the pause is over; `true` if the ear is not covered.
    ///
    /// # Errors
    /// The system's.
    pub fn uncover<'b>(&mut self, bells: impl IntoIterator<Item = BorrowedFd<'b>>) -> io::Result<bool> {
        if self.covered && self.timer_is_over()? {
            self.covered = false;
            bells.into_iter().try_for_each(|bell| self.add(bell))?;
        }
        Ok(!self.covered)
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

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::eventfd::EventFd;

    fn readable(ear: &Ear, bound: u16) -> bool {
        let mut fds = [PollFd::new(ear.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(bound)).unwrap() == 1
    }

    #[test]
    fn a_covered_ear_hears_nothing_until_its_time() {
        let (mut ear, bell) = (Ear::new().unwrap(), EventFd::new().unwrap());
        ear.add(&bell).unwrap();
        ear.add(&bell).unwrap();
        assert!(!readable(&ear, 0));
        bell.write(1).unwrap();
        assert!(readable(&ear, 0));
        ear.cover([bell.as_fd()], Duration::from_secs(3600)).unwrap();
        assert!(!readable(&ear, 0) && !ear.uncover([bell.as_fd()]).unwrap());
        ear.cover([], Duration::ZERO).unwrap();
        assert!(readable(&ear, 10_000), "the timer");
        assert!(ear.uncover([bell.as_fd()]).unwrap() && !ear.is_covered());
        assert!(readable(&ear, 0), "the bell that rang meanwhile");
        ear.remove(&bell);
        assert!(!readable(&ear, 0));
    }
}
