// Not a core: does I/O or calls a hypervisor.

//! A timer with a descriptor.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Expires once, after which its descriptor is readable until that is taken.
///
/// ```
/// use event_loop::{EventSet, Timer};
/// use std::time::Duration;
///
/// const RETRY: u64 = 0;
/// let set = EventSet::new()?;
/// let timer = Timer::new()?;
/// set.add(&timer, RETRY)?;
/// timer.expire_after(Duration::from_millis(1))?;
/// assert!(set.wait(None)?.contains(RETRY));
/// assert!(timer.take()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Timer {
    timer: TimerFd,
}

impl Timer {
    /// Makes a timer that does not expire.
    ///
    /// # Errors
    /// `timerfd_create` fails, as when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self { timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)? })
    }

    /// Makes the timer expire once `pause` has passed, and no more when it was to.
    ///
    /// # Errors
    /// `timerfd_settime` fails.
    pub fn expire_after(&self, pause: Duration) -> io::Result<()> {
        // Zero would disarm the timer.
        let pause = TimeSpec::from_duration(pause.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(pause), TimerSetTimeFlags::empty())?)
    }

    /// Makes the timer not expire, and forgets that it has.
    ///
    /// # Errors
    /// `timerfd_settime` fails.
    pub fn cancel(&self) -> io::Result<()> {
        Ok(self.timer.unset()?)
    }

    /// Whether the timer has expired; `true` once.
    ///
    /// # Errors
    /// The timer cannot be read.
    pub fn take(&self) -> io::Result<bool> {
        match nix::unistd::read(&self.timer, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable(timer: &Timer, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() == 1
    }

    #[test]
    fn timer_that_expires_is_readable_until_it_is_taken() {
        let timer = Timer::new().unwrap();
        timer.expire_after(Duration::from_secs(3600)).unwrap();
        assert!(!readable(&timer, 0) && !timer.take().unwrap());
        timer.expire_after(Duration::ZERO).unwrap();
        assert!(readable(&timer, 10_000) && readable(&timer, 0));
        assert!(timer.take().unwrap() && !timer.take().unwrap());
        assert!(!readable(&timer, 0));
    }

    #[test]
    fn timer_that_is_cancelled_does_not_expire() {
        let timer = Timer::new().unwrap();
        timer.expire_after(Duration::ZERO).unwrap();
        assert!(readable(&timer, 10_000));
        timer.cancel().unwrap();
        assert!(!readable(&timer, 0) && !timer.take().unwrap());
    }
}
