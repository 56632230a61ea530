//! Keeps a guest's pages mapped while any frame that points into them lives, wherever that frame is queued.
//!
//! The vif's thread has the [`Keeper`]; frames have pins on its [`Held`]. Whoever drops a packet's last pin puts its
//! token on a queue, from any thread and without a lock, and the vif takes its pages back and answers the guest.
#![allow(unsafe_code)] // A cell that is handed between threads by a counter.

use bridge::{Hold, Pin};
use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

struct Entry<T> {
    pins: AtomicU32,
    /// Written and taken by the keeper alone, and only while there are no pins and the token is not queued.
    kept: UnsafeCell<Option<T>>,
}

/// What pins hold on to.
struct Held<T> {
    entries: Box<[Entry<T>]>,
    freed: ArrayQueue<u16>,
    /// The vif sleeps: it is to be woken for what is freed.
    asleep: AtomicBool,
    wake: EventFd,
}

// SAFETY: a cell is accessed by the keeper only (one owner, `&mut self`), when its counter is zero and its token was
// taken from `freed`, whose pop synchronises with the push by the thread that dropped the last pin. Frames read
// the pages that `T` keeps mapped, never the cell.
unsafe impl<T: Send> Sync for Held<T> {}

impl<T: Send> Hold for Held<T> {
    fn hold(&self, token: u32) {
        // As `Arc::clone`: who holds one pin may make another.
        self.entries[token as usize].pins.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, token: u32) {
        if self.entries[token as usize].pins.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // Never full: it has room for every token, and each is in it once at most.
        let _ = self.freed.push(token as u16);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            let _ = self.wake.write(1);
        }
    }
}

/// The owner's side: puts pages in, takes them back when nobody points there any more.
pub(crate) struct Keeper<T: Send + 'static> {
    held: Arc<Held<T>>,
    /// The same, as pins want it; made once because making it costs an atomic operation.
    owner: Arc<dyn Hold>,
    free: Vec<u16>,
}

impl<T: Send + 'static> Keeper<T> {
    /// Room for `limit` packets, at most 65,535.
    ///
    /// # Errors
    /// No eventfd.
    pub(crate) fn new(limit: u16) -> io::Result<Self> {
        let entry = || Entry { pins: AtomicU32::new(0), kept: UnsafeCell::new(None) };
        let held = Arc::new(Held {
            entries: (0..limit).map(|_| entry()).collect(),
            freed: ArrayQueue::new(usize::from(limit).max(1)),
            asleep: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        Ok(Self { owner: held.clone(), held, free: (0..limit).rev().collect() })
    }

    /// Keeps `value` until every clone of the pin is dropped; the value comes back where there is no room.
    pub(crate) fn keep(&mut self, value: T) -> Result<(Pin, &T), T> {
        let Some(token) = self.free.pop() else { return Err(value) };
        let entry = &self.held.entries[usize::from(token)];
        // SAFETY: the token was free: no pins, not queued, and we are the one keeper.
        let kept = unsafe { &mut *entry.kept.get() };
        entry.pins.store(1, Ordering::Relaxed);
        Ok((Pin::adopt(self.owner.clone(), token.into()), kept.insert(value)))
    }

    /// Takes back a value that nobody points into any more.
    #[inline]
    pub(crate) fn reap(&mut self) -> Option<T> {
        if self.is_idle() {
            return None;
        }
        let token = self.held.freed.pop()?;
        self.free.push(token);
        // SAFETY: its counter fell to zero before it was queued, and nobody can pin it again but us.
        unsafe { (*self.held.entries[usize::from(token)].kept.get()).take() }
    }

    /// Whether nothing is kept.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.held.entries.len()
    }

    /// Asks that [`Keeper::fd`] becomes readable when something can be reaped; `true` if something can already.
    pub(crate) fn arm(&mut self) -> bool {
        let _ = self.held.wake.read();
        self.held.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.held.freed.is_empty()
    }

    /// Readable once something can be reaped after [`Keeper::arm`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.held.wake.as_fd()
    }
}

impl<T: Send + 'static> std::fmt::Debug for Keeper<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = self.held.entries.len() - self.free.len();
        f.debug_struct("Keeper").field("kept", &kept).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_value_comes_back_once_after_the_last_pin() {
        let mut keeper = Keeper::new(1).unwrap();
        let (pin, kept) = keeper.keep("pages".to_owned()).unwrap();
        assert_eq!(kept, "pages");
        assert!(keeper.keep("more".to_owned()).is_err());
        let twin = pin.clone();
        drop(pin);
        assert_eq!(keeper.reap(), None);
        std::thread::spawn(move || drop(twin)).join().unwrap();
        assert_eq!(keeper.reap().as_deref(), Some("pages"));
        assert_eq!((keeper.reap(), keeper.is_idle()), (None, true));
    }

    #[test]
    fn pins_outlive_the_keeper_and_free_what_it_kept() {
        let value = Arc::new(());
        let mut keeper = Keeper::new(4).unwrap();
        let (pin, _) = keeper.keep(value.clone()).unwrap();
        drop(keeper);
        assert_eq!(Arc::strong_count(&value), 2);
        drop(pin);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_sleeping_keeper_is_woken() {
        let mut keeper = Keeper::new(4).unwrap();
        let (pin, _) = keeper.keep(1).unwrap();
        assert!(!keeper.arm());
        drop(pin);
        let mut fds = [nix::poll::PollFd::new(keeper.fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 1);
        assert!(keeper.fd().as_raw_fd() >= 0 && keeper.arm());
        assert_eq!(keeper.reap(), Some(1));
    }
}
