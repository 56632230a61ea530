//! The rings under the loom model checker: every interleaving and every reordering that the memory model allows, of
//! small runs. `RUSTFLAGS="--cfg loom" cargo test -p ring-abi --test loom --release`, in a target directory of its
//! own.
//!
//! Each barrier of [`ring_abi::sync::Barrier`] is also left out on purpose, and the run must then be seen to fail.
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

/// Two slots in a page, each a value and its complement: a torn one is seen.
enum Pair {}

impl Protocol for Pair {
    const NAME: &'static str = "pair";
    const SLOT: usize = 2016;
    type Request = u32;
    type Response = u32;
    fn read_request(slot: Slot<'_>) -> u32 {
        let (value, complement) = (slot.load32(0), slot.load32(4));
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

/// Both halves after one request was sent, taken, answered and its answer taken, so that no event index is fresh.
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

/// One side publishes while the other goes to sleep: the first must notify or the second must see.
fn request_meets_arming() {
    let (mut front, mut back) = used_ring();
    let arming = thread::spawn(move || back.arm().unwrap());
    assert!(front.push(&2));
    let notified = front.commit().wanted();
    assert!(arming.join().unwrap() || notified, "a request nobody wakes up for");
}

fn response_meets_arming() {
    let (mut front, mut back) = used_ring();
    assert!(front.push(&2));
    let _ = front.commit();
    assert_eq!(back.pop(), Ok(Some(2)));
    let arming = thread::spawn(move || front.arm().unwrap());
    back.push(&2);
    let notified = back.commit().wanted();
    assert!(arming.join().unwrap() || notified, "a response nobody wakes up for");
}

/// Requests and responses through slots that are used again: none is torn, lost or made up.
fn slots_are_used_again() {
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

/// An event channel: remembers one event, and sleeps until there is one.
#[derive(Clone)]
struct Notifier(Arc<(Mutex<bool>, Condvar)>);

impl Notifier {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }
    fn ring(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }
    fn sleep(&self) {
        let mut rung = self.0.0.lock().unwrap();
        while !*rung {
            rung = self.0.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Both sides sleep whenever they find nothing: a wake-up lost is a deadlock, which loom reports.
fn both_sides_sleep() {
    let (mut front, mut back) = used_ring();
    let (to_back, to_front) = (Notifier::new(), Notifier::new());
    let (hears, tells) = (to_back.clone(), to_front.clone());
    let serving = thread::spawn(move || {
        for expected in [2, 3] {
            let value = loop {
                match back.pop().unwrap() {
                    Some(value) => break value,
                    None if !back.arm().unwrap() => hears.sleep(),
                    None => {}
                }
            };
            assert_eq!(value, expected);
            back.push(&value);
            if back.commit().wanted() {
                tells.ring();
            }
        }
    });
    for value in [2, 3] {
        assert!(front.push(&value));
        if front.commit().wanted() {
            to_back.ring();
        }
        let answer = loop {
            match front.pop().unwrap() {
                Some(answer) => break answer,
                None if !front.arm().unwrap() => to_front.sleep(),
                None => {}
            }
        };
        assert_eq!(answer, value);
    }
    serving.join().unwrap();
}

static ONE_AT_A_TIME: StdMutex<()> = StdMutex::new(());

fn check(run: fn(), left_out: Option<Barrier>) -> bool {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    leave_out(left_out);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    let held = catch_unwind(AssertUnwindSafe(|| builder.check(run))).is_ok();
    leave_out(None);
    held
}

fn holds(run: fn()) {
    assert!(check(run, None));
}

fn fails_without(barrier: Barrier, run: fn()) {
    assert!(!check(run, Some(barrier)), "the run does not need {barrier:?}, or does not see that it lacks");
}

#[test]
fn no_request_is_slept_through() {
    holds(request_meets_arming);
    fails_without(Barrier::Published, request_meets_arming);
    fails_without(Barrier::Armed, request_meets_arming);
}

#[test]
fn no_response_is_slept_through() {
    holds(response_meets_arming);
    fails_without(Barrier::Published, response_meets_arming);
    fails_without(Barrier::Armed, response_meets_arming);
}

#[test]
fn no_slot_is_torn() {
    holds(slots_are_used_again);
    fails_without(Barrier::Publish, slots_are_used_again);
    fails_without(Barrier::Observe, slots_are_used_again);
}

#[test]
fn nobody_sleeps_for_ever() {
    // Left out, a barrier gives a deadlock here, on which loom aborts; the two runs above show what it is needed for.
    holds(both_sides_sleep);
}
