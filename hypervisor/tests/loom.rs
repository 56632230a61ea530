//! Page transfer under the loom model checker, which tries every interleaving and every reordering of small runs that the memory
//! model allows: a page's bytes, and the page itself, are in one domain's hands at a time.
//!
//! It is the code of the local hypervisor, over loom's atomics instead of an arena's. The ordering of each access is also left out,
//! and a run must then fail.

#[path = "../../tests/loom/weakened.rs"]
mod atomic;
#[allow(dead_code)]
#[path = "../src/local/balloon.rs"]
mod balloon;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/local/entry.rs"]
mod entry;

use arena::{Arena, PAGES};
use entry::{Accepted, Entry};
use hypervisor::Result;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use ring_abi::DomId;

const DOM0: DomId = DomId(0);

/// What the balloon queue needs of an arena's layout.
mod layout {
    /// An arena of a queue of two slots.
    #[derive(Clone, Copy)]
    pub(crate) struct Layout;

    impl Layout {
        pub(crate) fn balloon(self) -> usize {
            0
        }

        pub(crate) fn balloon_slots(self) -> u32 {
            2
        }
    }
}

/// What the balloon queue needs of an arena.
mod arena {
    use super::atomic::AtomicU32;
    use super::layout::Layout;
    use loom::cell::UnsafeCell;
    use std::os::fd::{BorrowedFd, OwnedFd};

    /// Frames 0 and 1 are not grantable, as in an arena.
    pub(crate) const PAGES: usize = 4;

    /// The words of the queue by their places, and pages of one byte.
    pub(crate) struct Arena {
        words: [(usize, AtomicU32); 4],
        pub(crate) pages: [UnsafeCell<u8>; PAGES],
    }

    impl Arena {
        pub(crate) fn new() -> Arena {
            let places = [0, 64, ring_abi::PAGE_SIZE, ring_abi::PAGE_SIZE + 4];
            let pages = [0; PAGES].map(UnsafeCell::new);
            Arena { words: places.map(|at| (at, AtomicU32::default())), pages }
        }

        pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
            self.words
                .iter()
                .find(|(place, _)| *place == at)
                .map(|(_, word)| word)
                .expect("a word of the queue")
        }

        pub(crate) fn layout(&self) -> Layout {
            Layout
        }

        pub(crate) fn fd(&self) -> BorrowedFd<'_> {
            unreachable!("the broker's")
        }
    }

    pub(crate) fn map_temporarily(_: &OwnedFd, _: Layout) -> super::Result<Arena> {
        unreachable!("the broker's")
    }
}

/// Writes to a page, which loom refuses while another thread may access it.
#[allow(unsafe_code)] // Loom checks what the block claims.
fn write(page: &UnsafeCell<u8>, byte: u8) {
    // SAFETY: loom checks that no other access is concurrent.
    page.with_mut(|page| unsafe { *page = byte });
}

#[allow(unsafe_code)] // As above.
fn read(page: &UnsafeCell<u8>) -> u8 {
    // SAFETY: loom checks that no write is concurrent.
    page.with(|page| unsafe { *page })
}

struct Shared {
    arena: Arena,
    entry: Entry,
}

/// The guest uses a page and gives it up; dom0 takes it over, fills it and transfers it; the guest reads it, uses it once more
/// and gives it up again.
fn give_up_and_receive() {
    let shared = Arc::new(Shared { arena: Arena::new(), entry: Entry::default() });
    let guest = shared.clone();
    let dom0 = thread::spawn(move || {
        for round in 1..=2 {
            let mut taken = None;
            while taken.is_none() {
                balloon::pop(&shared.arena, 1, |frame| taken = Some(frame));
                thread::yield_now();
            }
            let frame = taken.expect("just taken");
            assert!((2..PAGES as u32).contains(&frame), "frame {frame} was not given up");
            write(&shared.arena.pages[frame as usize], 10 * round);
            while shared.entry.commit(DOM0).is_err() {
                thread::yield_now();
            }
            shared.entry.complete(frame);
        }
    });
    let mut produced = 0;
    for round in 1..=2 {
        let frame = 1 + u32::from(round);
        write(&guest.arena.pages[frame as usize], 1);
        guest.entry.accept(DOM0);
        assert_eq!(balloon::push(&guest.arena, &mut produced, &[frame]), 1);
        let received = loop {
            match guest.entry.accepted() {
                Accepted::Page(frame) => break frame,
                Accepted::Waiting | Accepted::Committed => thread::yield_now(),
            }
        };
        guest.entry.clear();
        assert_eq!(received, frame, "a page that was not sent");
        assert_eq!(read(&guest.arena.pages[received as usize]), 10 * round, "bytes of an earlier use");
        write(&guest.arena.pages[received as usize], 1);
    }
    dom0.join().expect("no panic");
}

/// The guest stops accepting while dom0 transfers: the page is in the entry, or dom0 keeps it, and both know which.
fn refuse_while_transferred() {
    let shared = Arc::new(Shared { arena: Arena::new(), entry: Entry::default() });
    shared.entry.accept(DOM0);
    let guest = shared.clone();
    let dom0 = thread::spawn(move || {
        write(&shared.arena.pages[2], 7);
        let is_sent = shared.entry.commit(DOM0).is_ok();
        if is_sent {
            shared.entry.complete(2);
        }
        is_sent
    });
    let is_refused = guest.entry.refuse();
    let is_received = !is_refused
        && loop {
            match guest.entry.accepted() {
                Accepted::Page(frame) => break read(&guest.arena.pages[frame as usize]) == 7,
                // A transfer was committed before, and is completed.
                Accepted::Waiting | Accepted::Committed => thread::yield_now(),
            }
        };
    let is_sent = dom0.join().expect("no panic");
    assert_eq!((is_sent, is_received), (!is_refused, !is_refused), "a page in two hands or in none");
}

/// Accesses whose ordering no run needs, under loom: it has the stores of one word take effect in the order in which they were
/// executed, and no load after a later store of its thread. Without these a frame's number could be overwritten by the one that
/// was there before, and a slot of the queue before it was read.
const NOT_NEEDED: [&str; 6] = [
    "let consumed = arena.word(header + CONSUMED).load(Ordering::Acquire);",
    "arena.word(header + CONSUMED).store(consumed, Ordering::Release);",
    "self.head.store(0, Ordering::Release);",
    "self.head.store(head(domid, ACCEPT_TRANSFER), Ordering::Release);",
    "&& self.head.compare_exchange(now, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()",
    ".compare_exchange(wanted, next, Ordering::AcqRel, Ordering::Relaxed)",
];

fn main() {
    let source = |file: &str| match file {
        file if file.ends_with("balloon.rs") => include_str!("../src/local/balloon.rs"),
        _ => include_str!("../src/local/entry.rs"),
    };
    let runs = [give_up_and_receive, refuse_while_transferred];
    let not_needed = atomic::explore("pages have one owner at a time", &runs, source);
    assert_eq!(not_needed, NOT_NEEDED);
}
