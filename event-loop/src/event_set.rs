// Not a core: does I/O or calls a hypervisor.

//! One pollable descriptor for all that a loop waits for, and a timer.
//!
//! A loop of its own waits for the set. A device served by its caller's loop gives that loop the set as a single
//! descriptor for life.
//!
//! While the set is masked, events of the notifiers do not make it readable; a timer does when the mask ends.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Descriptors that one call of [`EventSet::wait`] reports at most; the next call reports the others.
const EVENTS: usize = 8;

/// An epoll instance and a timer.
///
/// ```
/// use event_loop::EventSet;
/// use nix::sys::eventfd::EventFd;
/// use std::os::fd::AsFd;
/// use std::time::Duration;
///
/// const NOTIFIER: u64 = 0;
/// let notifier = EventFd::new()?;
/// let mut set = EventSet::new()?;
/// set.add(&notifier, NOTIFIER)?;
/// notifier.write(1)?;
/// assert!(set.wait(None)?.contains(NOTIFIER));
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
    /// The token of the timer, which no descriptor has.
    pub const TIMER: u64 = u64::MAX;

    /// Creates a set without descriptors.
    ///
    /// # Errors
    /// `epoll_create1` or `timerfd_create` fails, as when the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let event_set = Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, timer, masked: false };
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
            notifiers.into_iter().try_for_each(|notifier| self.add(notifier, 0))?;
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
        // More than one call reports: each is reported by some call.
        for event in &events {
            event.write(1).unwrap();
        }
        let mut left: Vec<_> = (0..20).collect();
        while !left.is_empty() {
            let ready = event_set.wait(now).unwrap();
            left.retain(|token| !ready.contains(*token));
            let taken = events.iter().enumerate().filter(|(token, _)| ready.contains(*token as u64));
            assert!(taken.map(|(_, event)| event.read().unwrap()).count() > 0);
        }
    }

    #[test]
    fn wait_shorter_than_a_millisecond_does_not_return_early() {
        let event_set = EventSet::new().unwrap();
        let started = std::time::Instant::now();
        assert!(!event_set.wait(Some(Duration::from_micros(300))).unwrap().contains(EventSet::TIMER));
        assert!(started.elapsed() >= Duration::from_micros(300));
    }

    #[test]
    fn event_set_while_masked_ignores_notifiers_until_the_timer_expires() {
        let mut event_set = EventSet::new().unwrap();
        let notifier = EventFd::new().unwrap();
        event_set.add(&notifier, 0).unwrap();
        event_set.add(&notifier, 0).unwrap();
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
