// Not a core: does I/O or calls a hypervisor.

//! Keeps what frames point into, such as mapped pages, while any of the frames is alive, wherever it is queued.
//!
//! A port's thread owns the [`PinTable`]; frames have pins that count in its [`Shared`] part. Whoever drops the last
//! pin of a value, on any thread, puts its token on a lock-free queue, from which the port takes it: netback to unmap
//! the pages and answer the guest, a port of a guest's interface to free the pages.
#![allow(unsafe_code)] // A cell that is handed between threads by a counter.

use crate::{Pin, PinOwner};
use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

struct Entry<T> {
    pins: AtomicU32,
    /// Accessed by the table's owner alone, and emptied only while there are no pins and the token is not queued.
    value: UnsafeCell<Option<T>>,
}

/// What pins share with the table.
struct Shared<T> {
    entries: Box<[Entry<T>]>,
    /// Tokens whose last pin was dropped.
    released: ArrayQueue<u16>,
    /// The port sleeps: a release writes to `wake`.
    asleep: AtomicBool,
    wake: EventFd,
}

// SAFETY: a cell is accessed by the table's owner only (one owner, `&mut self`). It is emptied when its counter is zero and its
// token was taken from `released`, whose pop synchronises with the push by the thread that dropped the last pin. Frames read
// the pages that `T` keeps mapped, never the cell.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Send> PinOwner for Shared<T> {
    fn hold(&self, token: u32) {
        // Relaxed as in `Arc::clone`: the caller has a pin, so that the count is not zero.
        self.entries[token as usize].pins.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, token: u32) {
        if self.entries[token as usize].pins.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // Never full: it has a slot for every token, and each is queued once at most.
        let _ = self.released.push(token as u16);
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            let _ = self.wake.write(1);
        }
    }
}

/// Values that are pinned by frames, such as mappings.
pub struct PinTable<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    /// `shared` as pins need it. Made once, since each conversion costs an atomic operation.
    owner: Arc<dyn PinOwner>,
    free: Vec<u16>,
}

impl<T: Send + 'static> PinTable<T> {
    /// A table for `limit` values.
    ///
    /// # Errors
    /// No eventfd could be created.
    pub fn new(limit: u16) -> io::Result<Self> {
        let entry = || Entry { pins: AtomicU32::new(0), value: UnsafeCell::new(None) };
        let shared = Arc::new(Shared {
            entries: (0..limit).map(|_| entry()).collect(),
            released: ArrayQueue::new(usize::from(limit).max(1)),
            asleep: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        Ok(Self { owner: shared.clone(), shared, free: (0..limit).rev().collect() })
    }

    /// Keeps `value` until every clone of the pin is dropped; returns it as the error where the table is full.
    pub fn insert(&mut self, value: T) -> Result<(Pin, &T), T> {
        let Some(token) = self.free.pop() else { return Err(value) };
        let entry = &self.shared.entries[usize::from(token)];
        // SAFETY: the token was free, so that it has no pins and is not queued, and this is the table's owner.
        let cell = unsafe { &mut *entry.value.get() };
        entry.pins.store(1, Ordering::Relaxed);
        Ok((Pin::adopt(self.owner.clone(), token.into()), cell.insert(value)))
    }

    /// The value that a pin of this table keeps; `None` for any other pin.
    #[inline]
    pub fn get_mut(&mut self, pin: &Pin) -> Option<&mut T> {
        let token = pin.token_of(&self.owner)?;
        // SAFETY: a pin's cell has its value until the pin is dropped, and only the table's owner accesses it.
        unsafe { (*self.shared.entries[token as usize].value.get()).as_mut() }
    }

    /// Takes out a value whose last pin was dropped.
    #[inline]
    pub fn reap(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let token = self.shared.released.pop()?;
        self.free.push(token);
        // SAFETY: the counter fell to zero before the token was queued, and only this owner makes new pins of it.
        unsafe { (*self.shared.entries[usize::from(token)].value.get()).take() }
    }

    /// Whether the table has no values.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.shared.entries.len()
    }

    /// Makes [`PinTable::fd`] become readable at the next release; `true` if there are released values already.
    pub fn arm(&mut self) -> bool {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.has_released()
    }

    /// Whether there are released values.
    pub fn has_released(&self) -> bool {
        !self.shared.released.is_empty()
    }

    /// Takes the event of a release.
    pub fn take_event(&self) {
        // EAGAIN is no error: there was none.
        let _ = self.shared.wake.read();
    }

    /// Becomes readable when a value is released after [`PinTable::arm`], until that event is taken.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl<T: Send + 'static> std::fmt::Debug for PinTable<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let len = self.shared.entries.len() - self.free.len();
        f.debug_struct("PinTable").field("len", &len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_reaped_once_after_the_last_pin_drops() {
        let mut table = PinTable::new(1).unwrap();
        let (pin, value) = table.insert("pages".to_owned()).unwrap();
        assert_eq!(value, "pages");
        assert!(table.insert("more".to_owned()).is_err());
        let twin = pin.clone();
        drop(pin);
        assert_eq!(table.reap(), None);
        std::thread::spawn(move || drop(twin)).join().unwrap();
        assert_eq!(table.reap().as_deref(), Some("pages"));
        assert_eq!((table.reap(), table.is_empty()), (None, true));
    }

    #[test]
    fn value_is_found_by_its_own_pin_alone() {
        let mut table = PinTable::new(2).unwrap();
        let mut other = PinTable::new(2).unwrap();
        let (pin, _) = table.insert(1).unwrap();
        let (others, _) = other.insert(2).unwrap();
        *table.get_mut(&pin).unwrap() += 10;
        assert_eq!(table.get_mut(&pin), Some(&mut 11));
        assert_eq!(table.get_mut(&others), None);
    }

    #[test]
    fn value_of_a_dropped_table_is_freed_with_the_last_pin() {
        let value = Arc::new(());
        let mut table = PinTable::new(4).unwrap();
        let (pin, _) = table.insert(value.clone()).unwrap();
        drop(table);
        assert_eq!(Arc::strong_count(&value), 2);
        drop(pin);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn armed_table_is_readable_after_a_release() {
        let mut table = PinTable::new(4).unwrap();
        let (pin, _) = table.insert(1).unwrap();
        assert!(!table.arm());
        drop(pin);
        let mut fds = [nix::poll::PollFd::new(table.fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 1);
        table.take_event();
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 0);
        assert!(table.arm());
        assert_eq!(table.reap(), Some(1));
    }
}
