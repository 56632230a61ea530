//! Hostile backends: the interface drops invalid frames or closes its connection, and the guest's program runs on.

use grant_table::{Access, GrantTable};
use hypervisor::local::Domain;
use netfront::{DropReason, Nic};
use rand::{Rng, RngExt};
use ring_abi::DomId;
use ring_abi::netif::{RxFlags, RxResponse, Status, TxResponse};
use ring_abi::testing::{RSP_EVENT, RSP_PROD, words};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::RawBackend;
use testkit::{BOUND, Machine, random};
use xenbus::{DeviceEnd, XenbusState};
use xenstore::Nodes;

/// Starts a machine without a backend; the test drives a [`RawBackend`] in dom0.
fn start() -> (Machine, Arc<Domain>) {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    (machine, dom0)
}

/// Asserts that the interface closes its connection for good, with an error that contains `words`.
fn assert_closed_for_good(nic: &mut Nic, back: &mut RawBackend, words: &str) {
    let deadline = Instant::now() + BOUND;
    while nic.is_up() {
        assert!(Instant::now() < deadline, "up after {BOUND:?}");
        nic.send(&[0; 60]);
        nic.flush();
        nic.recv(&mut [0; 2048]);
        nic.process_events().unwrap();
    }
    let path = DeviceEnd::front(&back.device).error_path();
    // A guest that may not write there only logs the error.
    if let Ok(text) = back.client.read_text(&path) {
        assert!(text.contains(words), "{text}");
    }
    nic.process_events().unwrap();
    let before = nic.counters().dropped(DropReason::Down);
    assert_eq!(nic.send(&[0; 60]), netfront::SendOutcome::Dropped);
    assert_eq!(nic.counters().dropped(DropReason::Down), before + 1);
}

/// A valid response for a frame of 60 bytes.
fn valid(id: u16) -> RxResponse {
    RxResponse { id, offset: 0, flags: RxFlags::empty(), status: 60 }
}

#[test]
fn responses_with_invalid_lengths_are_dropped_and_counted() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    back.respond(|id| RxResponse { offset: 4000, status: 97, ..valid(id) });
    back.respond(|id| RxResponse { offset: 0xffff, status: i16::MAX, ..valid(id) });
    back.respond(|id| RxResponse { status: -1, ..valid(id) });
    back.respond(|id| RxResponse { status: 13, ..valid(id) });
    for _ in 0..31 {
        back.respond(|id| RxResponse { flags: RxFlags::MORE_DATA, ..valid(id) });
    }
    back.respond(valid);
    back.respond(valid);
    let mut into = vec![0; 65_536];
    let deadline = Instant::now() + BOUND;
    while nic.counters().rx_frames < 1 {
        assert!(Instant::now() < deadline, "{:?}", nic.counters());
        nic.recv(&mut into);
    }
    let counters = nic.counters();
    assert!(nic.is_up() && counters.all_dropped() == 5, "{counters:?}");
    let by_reason = [DropReason::Size, DropReason::Status, DropReason::Slots].map(|r| counters.dropped(r));
    assert_eq!(by_reason, [3, 1, 1]);
    // All buffers are posted again.
    nic.flush();
    assert!((0..256).all(|_| back.rx.pop().unwrap().is_some()));
}

#[test]
fn response_for_a_buffer_not_in_flight_closes_for_good() {
    let (machine, dom0) = start();
    for (domid, id) in [(1, 255), (2, u16::MAX)] {
        let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(domid));
        nic.send(&[1; 60]);
        nic.flush();
        let deadline = Instant::now() + BOUND;
        while back.tx.pop().unwrap().is_none() {
            assert!(Instant::now() < deadline);
        }
        back.tx.push(&TxResponse { id, status: Status::OKAY });
        let _ = back.tx.commit();
        assert_closed_for_good(&mut nic, &mut back, "does not have");
    }
}

#[test]
fn response_in_the_wrong_slot_closes_for_good() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    back.respond(|id| valid(id.wrapping_add(1)));
    assert_closed_for_good(&mut nic, &mut back, "does not have");
}

#[test]
fn producer_index_out_of_range_closes_for_good() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    words(back.rx.memory()).store32(RSP_PROD, 5000);
    back.event.notify().unwrap();
    assert_closed_for_good(&mut nic, &mut back, "producer index");
}

/// XSA-391.
#[test]
fn event_storm_leaves_the_interface_receiving() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    let RawBackend { rx, event, .. } = &mut back;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = event.notify();
            }
        });
        let mut into = vec![0; 2048];
        let deadline = Instant::now() + BOUND;
        for count in 1..=20 {
            let request = rx.pop().unwrap().unwrap();
            rx.push(&valid(request.id).into());
            let _ = rx.commit();
            while nic.counters().rx_frames < count {
                assert!(Instant::now() < deadline);
                nic.wait(false, Duration::from_millis(20)).unwrap();
                nic.recv(&mut into);
            }
        }
        stop.store(true, Relaxed);
    });
}

#[test]
fn rings_overwritten_during_reads_cause_no_panic() {
    let (machine, dom0) = start();
    for domid in 1..5 {
        let (mut nic, back) = RawBackend::connect(&machine, &*dom0, DomId(domid));
        let stop = AtomicBool::new(false);
        let rings = [back.tx.memory().clone(), back.rx.memory().clone()];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Indexes get small values, which are possible more often.
                random::overwrite(&rings, domid.into(), &stop, |random, offset| {
                    Some(if offset <= RSP_EVENT { random.random_range(0..16) } else { random.next_u32() })
                });
            });
            let mut into = vec![0; 65_536];
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(200) {
                nic.send(&[3; 1000]);
                nic.flush();
                nic.recv(&mut into);
                nic.process_events().unwrap();
            }
            stop.store(true, Relaxed);
        });
    }
}

#[test]
fn store_is_followed_while_the_backend_sends_events_without_end() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    DeviceEnd::back(&back.device).switch_state(&mut back.client, XenbusState::Closing).unwrap();
    let deadline = Instant::now() + BOUND;
    while nic.is_up() {
        assert!(Instant::now() < deadline, "up after {BOUND:?}");
        // An event before each look: the store's turn comes nevertheless.
        let _ = back.event.notify();
        nic.process_events().unwrap();
    }
}

#[test]
fn backend_that_reconnects_without_end_is_granted_the_same_pages() {
    use ring_abi::GrantRef;
    use ring_abi::netif::key;
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    let end = DeviceEnd::back(&back.device);
    let front = DeviceEnd::front(&back.device);
    let mut granted = std::collections::BTreeSet::new();
    let mut mapped = Vec::new();
    for _ in 0..8 {
        let keys = end.other_keys(&mut back.client).unwrap();
        for key in [key::TX_RING_REF, key::RX_RING_REF] {
            let gref = GrantRef(keys.need(key).unwrap());
            granted.insert(gref);
            // It keeps all that it was granted.
            mapped.push(dom0.map_contiguous(DomId(1), &[gref], Access::ReadWrite).unwrap());
        }
        for (state, answer) in [
            (XenbusState::Closing, XenbusState::Closed),
            (XenbusState::Closed, XenbusState::Initialising),
            (XenbusState::InitWait, XenbusState::Connected),
        ] {
            end.switch_state(&mut back.client, state).unwrap();
            let deadline = Instant::now() + BOUND;
            while front.state(&mut back.client).unwrap() != answer {
                assert!(Instant::now() < deadline, "no {answer} after {state}");
                let _ = nic.process_events();
            }
        }
    }
    assert_eq!(granted.len(), 2, "{granted:?}");
    end.switch_state(&mut back.client, XenbusState::Connected).unwrap();
    testkit::net::until(&mut nic, Nic::is_up);
}
