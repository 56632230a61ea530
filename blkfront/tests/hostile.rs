//! Hostile backends: the guest's program runs on.

use blkfront::{Completion, Disk, Operation, Request};
use event_loop::storm_guard::SPURIOUS_BURST;
use grant_table::{Access, GrantTable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::blkif::key;
use ring_abi::{DomId, GrantRef};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::block::RawBackend;
use testkit::{BOUND, Machine, StopOnDrop};
use xenbus::{DeviceEnd, XenbusState};

/// How long wake-ups are counted.
const STORM: Duration = Duration::from_millis(400);
/// The longest sleep of a disk that nobody wakes.
const SLEEP: Duration = Duration::from_millis(20);

/// Most wake-ups in a storm of this length: the burst that is tolerated, and then for each millisecond the end of a mask
/// and one event; twice that rate allows for a slow machine.
fn bound(storm: Duration) -> u64 {
    SPURIOUS_BURST + 4 * storm.as_millis() as u64
}

/// Calls `test` while the backend sends events without work, as fast as it can (XSA-391).
fn in_storm(test: impl FnOnce(&mut Disk, &mut RawBackend)) {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let (mut disk, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    let channel = back.channel.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop_on_drop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                channel.notify().unwrap();
            }
        });
        test(&mut disk, &mut back);
    });
}

/// Calls `wait` for the time of a storm, and asserts that it does not return too often.
fn assert_wakeups_limited(mut wait: impl FnMut()) {
    let started = Instant::now();
    let mut wakeups = 0;
    while started.elapsed() < STORM {
        wait();
        wakeups += 1;
    }
    let bound = bound(started.elapsed());
    println!("{wakeups} wake-ups in {:?}", started.elapsed());
    assert!(wakeups <= bound, "{wakeups} wake-ups, expected at most {bound}");
}

#[test]
fn event_storm_wakes_a_waiting_disk_at_a_limited_rate() {
    in_storm(|disk, _| {
        assert_wakeups_limited(|| {
            disk.wait(&mut Vec::new(), Some(SLEEP)).unwrap();
        });
    });
}

/// For a caller that waits for the disk's descriptor among others.
#[test]
fn event_storm_makes_the_descriptor_readable_at_a_limited_rate() {
    in_storm(|disk, _| {
        assert_wakeups_limited(|| {
            assert!(!disk.arm().unwrap());
            let timeout = PollTimeout::try_from(SLEEP).unwrap();
            poll(&mut [PollFd::new(disk.fd(), PollFlags::POLLIN)], timeout).unwrap();
            disk.process_events().unwrap();
            assert_eq!(disk.poll(&mut Vec::new()).unwrap(), 0);
        });
    });
}

#[test]
fn requests_complete_during_an_event_storm() {
    in_storm(|disk, back| {
        for round in 0..200 {
            let buffer = disk.buffer(4096).unwrap();
            let request = Request {
                token: round,
                operation: Operation::Read,
                sector: 0,
                bytes: 4096,
                buffer: Some(buffer),
            };
            disk.submit(request).unwrap();
            disk.commit().unwrap();
            // Answered before the disk sleeps, or after it: the storm's events are all that it has.
            if round % 2 == 0 {
                assert_eq!(back.answer_all(), 1);
            }
            let mut done: Vec<Completion> = Vec::new();
            let started = Instant::now();
            while done.is_empty() {
                assert!(started.elapsed() < BOUND, "request {round} is not complete");
                disk.wait(&mut done, Some(SLEEP)).unwrap();
                back.answer_all();
            }
            assert_eq!(done[0].request.token, round);
            done[0].check().unwrap();
        }
    });
}

#[test]
fn backend_that_reconnects_without_end_is_granted_the_same_pages() {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let (mut disk, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    let end = DeviceEnd::back(&back.device);
    let front = DeviceEnd::front(&back.device);
    let mut granted = std::collections::BTreeSet::new();
    let mut mapped = Vec::new();
    for _ in 0..8 {
        let keys = end.other_keys(&mut back.client).unwrap();
        let gref = GrantRef(keys.need(key::RING_REF).unwrap());
        granted.insert(gref);
        // It keeps all that it was granted.
        mapped.push(dom0.map_contiguous(DomId(1), &[gref], Access::ReadWrite).unwrap());
        for (state, answer) in [
            (XenbusState::InitWait, XenbusState::Initialised),
            (XenbusState::Connected, XenbusState::Connected),
        ] {
            end.switch_state(&mut back.client, state).unwrap();
            let deadline = Instant::now() + BOUND;
            while front.state(&mut back.client).unwrap() != answer {
                assert!(Instant::now() < deadline, "no {answer} after {state}");
                disk.process_events().unwrap();
            }
        }
        let now = end.other_keys(&mut back.client).unwrap();
        assert_ne!(now.get(key::RING_REF), keys.get(key::RING_REF), "a new ring has other keys");
    }
    assert_eq!(granted.len(), 2, "{granted:?}");
}
