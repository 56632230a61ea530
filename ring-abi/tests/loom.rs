//! The rings under the loom model checker, which tries every interleaving and every reordering of small runs that the
//! memory model allows. Run by `RUSTFLAGS="--cfg loom" cargo test -p ring-abi --test loom --release`, in a separate target
//! directory.
//!
//! Each barrier of [`ring_abi::sync::Barrier`] is also left out, and the run must then fail.
#![cfg(loom)]
#![allow(unsafe_code)] // Memory made of loom's atomics.

use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ring_abi::PAGE_SIZE;
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::shm::{Header, Memory, Slot};
use ring_abi::sync::Barrier;
use ring_abi::sync::model::leave_out;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::{Mutex as StdMutex, PoisonError};

/// A ring of two slots, each a value and its complement, so that a torn slot is detected.
enum Pair {}

impl Protocol for Pair {
    const NAME: &'static str = "pair";
    const SLOT: usize = 2016;
    type Request = u32;
    type Response = u32;
    fn read_request(slot: Slot<'_>) -> u32 {
        let value = slot.load32(0);
        let complement = slot.load32(4);
        assert_eq!(value, !complement, "a torn slot");
        value
    }
    fn write_request(slot: Slot<'_>, value: &u32) {
        slot.store32(0, *value);
        slot.store32(4, !*value);
    }
    fn read_response(slot: Slot<'_>) -> u32 {
        Self::read_request(slot)
    }
    fn write_response(slot: Slot<'_>, value: &u32) {
        Self::write_request(slot, value);
    }
}

const WORDS: usize = PAGE_SIZE / 4;
const USED: [usize; 4] = [16, 17, 16 + 504, 16 + 505];

struct Bytes {
    header: Header,
    words: Box<[MaybeUninit<AtomicU32>; WORDS]>,
}

#[derive(Clone)]
struct Page(Arc<Bytes>);

impl Page {
    fn new() -> Self {
        let mut words = Box::new([const { MaybeUninit::uninit() }; WORDS]);
        for word in USED {
            words[word].write(AtomicU32::new(0));
        }
        Self(Arc::new(Bytes { header: Header::new(), words }))
    }
}

// SAFETY: `Pair` touches only the first two words of the two slots, which are initialised.
unsafe impl Memory for Page {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0.words).cast()
    }
    fn len(&self) -> usize {
        PAGE_SIZE
    }
    fn header(&self) -> &Header {
        &self.0.header
    }
}

type FrontHalf = Front<Pair, Page>;
type BackHalf = Back<Pair, Page>;

/// Makes both halves of a ring that carried one request and its response, so that no event index is at its initial value.
fn used_ring() -> (FrontHalf, BackHalf) {
    let page = Page::new();
    let mut front = FrontHalf::init(page.clone()).unwrap();
    let mut back = BackHalf::attach(page).unwrap();
    assert!(front.push(&1));
    assert!(front.commit().wanted());
    assert_eq!(back.pop(), Ok(Some(1)));
    back.push(&1);
    assert!(back.commit().wanted());
    assert_eq!(front.pop(), Ok(Some(1)));
    (front, back)
}

/// The frontend publishes a request while the backend arms: one must notify, or the other must see the request.
fn publish_request_while_backend_arms() {
    let (mut front, mut back) = used_ring();
    let arming = thread::spawn(move || back.arm().unwrap());
    assert!(front.push(&2));
    let notified = front.commit().wanted();
    assert!(arming.join().unwrap() || notified, "a request without an event");
}

/// The same for a response and the frontend.
fn publish_response_while_frontend_arms() {
    let (mut front, mut back) = used_ring();
    assert!(front.push(&2));
    let _ = front.commit();
    assert_eq!(back.pop(), Ok(Some(2)));
    let arming = thread::spawn(move || front.arm().unwrap());
    back.push(&2);
    let notified = back.commit().wanted();
    assert!(arming.join().unwrap() || notified, "a response without an event");
}

/// Requests and responses in reused slots: none is torn, lost or repeated.
fn reuse_slots() {
    let (mut front, mut back) = used_ring();
    let serving = thread::spawn(move || {
        let mut next = 2;
        while next < 5 {
            match back.pop().unwrap() {
                Some(value) => {
                    assert_eq!(value, next);
                    back.push(&(value + 100));
                    let _ = back.commit();
                    next += 1;
                }
                None => thread::yield_now(),
            }
        }
    });
    for value in [2, 3] {
        assert!(front.push(&value));
        let _ = front.commit();
    }
    let reap = |front: &mut FrontHalf| loop {
        match front.pop().unwrap() {
            Some(value) => return value,
            None => thread::yield_now(),
        }
    };
    assert_eq!(reap(&mut front), 102);
    assert!(front.push(&4));
    let _ = front.commit();
    assert_eq!((reap(&mut front), reap(&mut front)), (103, 104));
    serving.join().unwrap();
}

/// An event channel: holds at most one pending event.
#[derive(Clone)]
struct Notifier(Arc<(Mutex<bool>, Condvar)>);

impl Notifier {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }
    fn notify(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }
    /// Waits for an event and takes it.
    fn wait(&self) {
        let mut pending = self.0.0.lock().unwrap();
        while !*pending {
            pending = self.0.1.wait(pending).unwrap();
        }
        *pending = false;
    }
}

/// Both sides wait whenever the ring is empty: a lost event is a deadlock, which loom reports.
fn both_ends_arming_lose_no_event() {
    let (mut front, mut back) = used_ring();
    let to_back = Notifier::new();
    let to_front = Notifier::new();
    let back_events = to_back.clone();
    let front_events = to_front.clone();
    let serving = thread::spawn(move || {
        for expected in [2, 3] {
            let value = loop {
                match back.pop().unwrap() {
                    Some(value) => break value,
                    None if !back.arm().unwrap() => back_events.wait(),
                    None => {}
                }
            };
            assert_eq!(value, expected);
            back.push(&value);
            if back.commit().wanted() {
                front_events.notify();
            }
        }
    });
    for value in [2, 3] {
        assert!(front.push(&value));
        if front.commit().wanted() {
            to_back.notify();
        }
        let response = loop {
            match front.pop().unwrap() {
                Some(response) => break response,
                None if !front.arm().unwrap() => to_front.wait(),
                None => {}
            }
        };
        assert_eq!(response, value);
    }
    serving.join().unwrap();
}

static ONE_AT_A_TIME: StdMutex<()> = StdMutex::new(());

/// Runs all interleavings, without one of the barriers; `false` if one of them fails.
fn check(run: fn(), left_out: Option<Barrier>) -> bool {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    leave_out(left_out);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    let passed = catch_unwind(AssertUnwindSafe(|| builder.check(run))).is_ok();
    leave_out(None);
    passed
}

fn passes(run: fn()) {
    assert!(check(run, None));
}

fn fails_without(barrier: Barrier, run: fn()) {
    assert!(!check(run, Some(barrier)), "passes without {barrier:?}");
}

#[test]
fn request_published_while_arming_is_noticed() {
    passes(publish_request_while_backend_arms);
    fails_without(Barrier::Published, publish_request_while_backend_arms);
    fails_without(Barrier::Armed, publish_request_while_backend_arms);
}

#[test]
fn response_published_while_arming_is_noticed() {
    passes(publish_response_while_frontend_arms);
    fails_without(Barrier::Published, publish_response_while_frontend_arms);
    fails_without(Barrier::Armed, publish_response_while_frontend_arms);
}

#[test]
fn reused_slots_are_not_torn() {
    passes(reuse_slots);
    fails_without(Barrier::Publish, reuse_slots);
    fails_without(Barrier::Observe, reuse_slots);
}

#[test]
fn waiting_sides_do_not_deadlock() {
    // Not run without a barrier: loom aborts on the deadlock. The two runs above show that the barriers are needed.
    passes(both_ends_arming_lose_no_event);
}
