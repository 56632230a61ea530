//! Waiting for many descriptors: looking for a while, then sleeping.
//!
//! While requests keep coming, looking at the rings is cheaper than being woken; how long to look is a number of
//! looks, not of seconds, so that no clock is read. Nothing is allocated per wait.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// The caller's name for a descriptor; `u64::MAX` is taken.
pub type Token = u64;

const WAKE: Token = Token::MAX;
/// Descriptors told of in one wait; others come in the next.
const BATCH: usize = 64;
/// After so many waits that found work by looking, the descriptors get their turn too.
const FAIR: u32 = 64;

/// Waits for any of a set of descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    wake: Arc<EventFd>,
    events: [EpollEvent; BATCH],
    count: usize,
    woken: bool,
    /// Waits that ended by looking, since the last that asked the system.
    looked: u32,
}

/// Wakes a poller from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// The next wait, or the one under way, ends and [`Poller::woken`] says so.
    pub fn wake(&self) {
        // The only refusal is that so many wake-ups are pending already.
        let _ = self.0.write(1);
    }
}

impl Poller {
    /// Waits for nothing yet but its waker.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let events = [EpollEvent::empty(); BATCH];
        Ok(Self { epoll, wake: Arc::new(wake), events, count: 0, woken: false, looked: 0 })
    }

    /// A handle to wake this poller by.
    pub fn waker(&self) -> Waker {
        Waker(self.wake.clone())
    }

    /// Waits for `fd` to be readable, too; it is told of by `token` as long as it is.
    ///
    /// # Errors
    /// The system's; `EEXIST` where it is waited for already.
    ///
    /// # Panics
    /// If the token is `u64::MAX`.
    pub fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        assert_ne!(token, WAKE, "the waker's token");
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Does not wait for `fd` any more; must be called before it is closed.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until a descriptor is readable, the waker was used, `look` gave `true`, or `bound` has passed; `look` is
    /// called at most `looks` times. A `bound` of `None` is for ever; fractions of a millisecond are rounded up.
    ///
    /// Returns whether `look` gave `true`. [`Poller::ready`] and [`Poller::woken`] tell the rest.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(
        &mut self,
        looks: u32,
        mut look: impl FnMut() -> bool,
        bound: Option<Duration>,
    ) -> io::Result<bool> {
        (self.count, self.woken) = (0, false);
        for _ in 0..looks {
            if look() {
                self.looked += 1;
                if self.looked >= FAIR {
                    self.ask(EpollTimeout::ZERO)?;
                }
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        self.ask(timeout(bound))?;
        Ok(false)
    }

    fn ask(&mut self, timeout: EpollTimeout) -> io::Result<()> {
        self.looked = 0;
        self.count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            // A signal ends the wait early, as the waker would.
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if self.events[..self.count].iter().any(|event| event.data() == WAKE) {
            self.woken = true;
            let _ = self.wake.read();
        }
        Ok(())
    }

    /// The tokens of descriptors that the last wait found readable, or whose other end is gone.
    pub fn ready(&self) -> impl Iterator<Item = Token> + '_ {
        self.events[..self.count].iter().map(EpollEvent::data).filter(|token| *token != WAKE)
    }

    /// Whether the waker was used before the last wait ended.
    pub fn woken(&self) -> bool {
        self.woken
    }
}

/// Whole milliseconds, rounded up: to wake too early would be to wait again for nothing.
fn timeout(bound: Option<Duration>) -> EpollTimeout {
    let Some(bound) = bound else { return EpollTimeout::NONE };
    let millis = bound.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));
    const NO_TIME: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn tells_which_are_readable_as_long_as_they_are() {
        let mut poller = Poller::new().unwrap();
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        for (token, pair) in pairs.iter().enumerate() {
            poller.add(&pair.0, token as u64).unwrap();
        }
        assert!(!poller.wait(0, || false, NO_TIME).unwrap());
        assert_eq!(poller.ready().count(), 0);
        (&pairs[1].1).write_all(b"x").unwrap();
        for _ in 0..2 {
            poller.wait(3, || false, LONG).unwrap();
            assert_eq!(poller.ready().collect::<Vec<_>>(), [1]);
        }
        poller.remove(&pairs[1].0).unwrap();
        poller.wait(0, || false, NO_TIME).unwrap();
        assert_eq!(poller.ready().count(), 0);
    }

    #[test]
    fn looking_finds_work_without_asking_and_starves_nobody() {
        let mut poller = Poller::new().unwrap();
        let (a, mut b) = UnixStream::pair().unwrap();
        poller.add(&a, 7).unwrap();
        b.write_all(b"x").unwrap();
        let mut looks = 0;
        let found = poller
            .wait(
                10,
                || {
                    looks += 1;
                    looks == 4
                },
                LONG,
            )
            .unwrap();
        assert!(found);
        assert_eq!((looks, poller.ready().count()), (4, 0));
        let turns = (0..FAIR).find(|_| {
            assert!(poller.wait(1, || true, LONG).unwrap());
            poller.ready().next() == Some(7)
        });
        assert!(turns.is_some(), "a busy ring starves the others");
    }

    #[test]
    fn a_waker_ends_the_wait_and_wake_ups_are_not_lost() {
        let mut poller = Poller::new().unwrap();
        let waker = poller.waker();
        waker.wake();
        waker.wake();
        poller.wait(0, || false, LONG).unwrap();
        assert!(poller.woken());
        assert_eq!(poller.ready().count(), 0);
        poller.wait(0, || false, NO_TIME).unwrap();
        assert!(!poller.woken());
        let thread = std::thread::spawn(move || waker.wake());
        poller.wait(0, || false, LONG).unwrap();
        assert!(poller.woken());
        thread.join().unwrap();
    }

    #[test]
    fn the_end_of_a_peer_is_told() {
        let mut poller = Poller::new().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        poller.add(&read, 3).unwrap();
        drop(write);
        poller.wait(0, || false, LONG).unwrap();
        assert_eq!(poller.ready().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn bounds_are_rounded_up() {
        let millis = |bound| i32::from(timeout(Some(bound)));
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_millis(5)), 5);
        assert_eq!(millis(Duration::MAX), i32::MAX);
        assert_eq!(i32::from(timeout(None)), -1);
    }
}
