// Not a core: does I/O or calls a hypervisor.

//! One pollable descriptor for all that a loop waits for, with a timer.
//!
//! A loop of its own waits for the set. A device served by its caller's loop gives that loop the set as a single
//! descriptor for life.

use crate::Timer;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Descriptors that one call of [`EventSet::wait`] reports at most; the next call reports the others.
const EVENTS: usize = 8;

/// An epoll instance, a timer and a clock.
///
/// ```
/// use event_loop::EventSet;
/// use nix::sys::eventfd::EventFd;
/// use std::time::Duration;
///
/// const NOTIFIER: u64 = 0;
/// let notifier = EventFd::new()?;
/// let set = EventSet::new()?;
/// set.add(&notifier, NOTIFIER)?;
/// notifier.write(1)?;
/// assert!(set.wait(None)?.contains(NOTIFIER));
/// notifier.read()?;
///
/// set.timer().expire_after(Duration::from_millis(1))?;
/// assert!(set.wait(None)?.contains(EventSet::TIMER));
/// assert!(set.timer().take()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct EventSet {
    epoll: Epoll,
    timer: Timer,
    created: Instant,
}

impl EventSet {
    /// The token of the timer, which no descriptor has.
    pub const TIMER: u64 = u64::MAX;

    /// Creates a set without descriptors.
    ///
    /// # Errors
    /// `epoll_create1` or `timerfd_create` fails, as when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event_set = Self { epoll, timer: Timer::new()?, created: Instant::now() };
        event_set.add(&event_set.timer, Self::TIMER)?;
        Ok(event_set)
    }

    /// Adds a descriptor to the set, which [`EventSet::wait`] then reports by `token`; does nothing if it is there
    /// already.
    ///
    /// # Errors
    /// `epoll_ctl` fails: no memory, or a descriptor that epoll does not support.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a descriptor from the set; does nothing if it is not there.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until a descriptor is readable, its peer has hung up, or the timer has expired; at most for `timeout`,
    /// rounded up to milliseconds (`None`: without limit). None is ready after a timeout or a signal.
    ///
    /// # Errors
    /// `epoll_wait` fails, which it does not on a set's own descriptor.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(timeout) => {
                EpollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(EpollTimeout::MAX)
            }
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => Ok(Ready { events, count }),
            Err(Errno::EINTR) => Ok(Ready { events, count: 0 }),
            Err(error) => Err(error.into()),
        }
    }

    /// The set's own timer, for one purpose at a time. Once it has expired, the set is ready, by the token
    /// [`EventSet::TIMER`], until [`Timer::take`].
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// The time since the set was made.
    pub fn elapsed(&self) -> Duration {
        self.created.elapsed()
    }
}

/// The tokens of what is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    events: [EpollEvent; EVENTS],
    count: usize,
}

impl Ready {
    /// Whether the descriptor with this token is among them.
    pub fn contains(&self, token: u64) -> bool {
        self.events[..self.count].iter().any(|event| event.data() == token)
    }

    /// Whether nothing is ready, as after the time-out of [`EventSet::wait`].
    pub fn is_empty(&self) -> bool {
        self.count == 0
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
    fn wait_reports_the_tokens_of_readable_descriptors_only() {
        let event_set = EventSet::new().unwrap();
        let events: Vec<_> = (0..20).map(|_| EventFd::new().unwrap()).collect();
        for (token, event) in events.iter().enumerate() {
            event_set.add(event, token as u64).unwrap();
        }
        let now = Some(Duration::ZERO);
        assert!((0..20).all(|token| !event_set.wait(now).unwrap().contains(token)));
        events[3].write(1).unwrap();
        events[7].write(1).unwrap();
        let ready = event_set.wait(None).unwrap();
        assert_eq!((0..20).filter(|token| ready.contains(*token)).collect::<Vec<_>>(), [3, 7]);
        // More than one call reports.
        for event in &events {
            event.write(1).unwrap();
        }
        let mut left: Vec<_> = (0..20).collect();
        for _ in 0..20usize.div_ceil(EVENTS) {
            let ready = event_set.wait(now).unwrap();
            left.retain(|token| !ready.contains(*token));
            for (_, event) in events.iter().enumerate().filter(|(token, _)| ready.contains(*token as u64)) {
                event.read().unwrap();
            }
        }
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn wait_shorter_than_a_millisecond_does_not_return_early() {
        let event_set = EventSet::new().unwrap();
        let started = std::time::Instant::now();
        assert!(!event_set.wait(Some(Duration::from_micros(300))).unwrap().contains(EventSet::TIMER));
        assert!(started.elapsed() >= Duration::from_micros(300));
    }

    #[test]
    fn descriptor_added_twice_or_removed_twice_is_no_error() {
        let event_set = EventSet::new().unwrap();
        let event = EventFd::new().unwrap();
        event.write(1).unwrap();
        event_set.add(&event, 0).unwrap();
        event_set.add(&event, 0).unwrap();
        assert!(readable(&event_set, 0));
        event_set.remove(&event);
        event_set.remove(&event);
        assert!(!readable(&event_set, 0));
    }
}
