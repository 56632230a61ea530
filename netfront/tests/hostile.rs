//! Backends that lie and die: the interface drops what is wrong or goes down, and its guest lives on.

use hypervisor::DomId;
use hypervisor::local::Domain;
use netfront::Nic;
use rand::{Rng, RngExt};
use ring_abi::netif::{RxFlags, RxResponse, Status, TxResponse};
use ring_abi::testing::{RSP_EVENT, RSP_PROD, words};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::RawBackend;
use testkit::{BOUND, Machine, random};
use xenstore::Nodes;

/// A machine without a backend, and dom0, which has one by hand.
fn start() -> (Machine, Arc<Domain>) {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    (machine, dom0)
}

/// The interface has nothing more to do with this backend, and says why.
fn is_given_up(nic: &mut Nic, back: &mut RawBackend, why: &str) {
    let deadline = Instant::now() + BOUND;
    while nic.is_up() {
        assert!(Instant::now() < deadline, "still up");
        nic.send(&[0; 60]);
        nic.flush();
        nic.recv(&mut [0; 2048]);
        nic.process_events().unwrap();
    }
    let path = format!("/local/domain/{0}/error/device/vif/0/error", back.device.front);
    // A guest that may not write there has it in its log only.
    if let Ok(text) = back.client.read_text(&path) {
        assert!(text.contains(why), "{text}");
    }
    nic.process_events().unwrap();
    assert_eq!(nic.send(&[0; 60]), netfront::SendOutcome::Dropped);
}

fn good(id: u16) -> RxResponse {
    RxResponse { id, offset: 0, flags: RxFlags::empty(), status: 60 }
}

#[test]
fn lies_about_bytes_cost_a_frame() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    back.respond(|id| RxResponse { offset: 4000, status: 97, ..good(id) });
    back.respond(|id| RxResponse { offset: 0xffff, status: i16::MAX, ..good(id) });
    back.respond(|id| RxResponse { status: -1, ..good(id) });
    back.respond(|id| RxResponse { status: 13, ..good(id) });
    for _ in 0..31 {
        back.respond(|id| RxResponse { flags: RxFlags::MORE_DATA, ..good(id) });
    }
    back.respond(good);
    back.respond(good);
    let (mut into, deadline) = (vec![0; 65_536], Instant::now() + BOUND);
    while nic.counters().rx_frames < 1 {
        assert!(Instant::now() < deadline, "{:?}", nic.counters());
        nic.recv(&mut into);
    }
    assert!(nic.is_up() && nic.counters().rx_bad == 5, "{:?}", nic.counters());
    // All buffers are posted again.
    nic.flush();
    assert!((0..256).all(|_| back.rx.pop().unwrap().is_some()));
}

#[test]
fn a_response_for_a_buffer_that_it_has_not_is_the_end() {
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
        is_given_up(&mut nic, &mut back, "does not have");
    }
}

#[test]
fn a_response_in_the_wrong_slot_is_the_end() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    back.respond(|id| good(id.wrapping_add(1)));
    is_given_up(&mut nic, &mut back, "does not have");
}

#[test]
fn a_producer_out_of_range_is_the_end() {
    let (machine, dom0) = start();
    let (mut nic, mut back) = RawBackend::connect(&machine, &*dom0, DomId(1));
    words(back.rx.memory()).store32(RSP_PROD, 5000);
    back.event.notify().unwrap();
    is_given_up(&mut nic, &mut back, "producer index");
}

/// XSA-391.
#[test]
fn a_storm_of_events_does_not_keep_the_interface_from_working() {
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
        let (mut into, deadline) = (vec![0; 2048], Instant::now() + BOUND);
        for count in 1..=20 {
            let request = rx.pop().unwrap().unwrap();
            rx.push(&good(request.id).into());
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
fn a_backend_that_changes_everything_meanwhile_gains_nothing() {
    let (machine, dom0) = start();
    for domid in 1..5 {
        let (mut nic, back) = RawBackend::connect(&machine, &*dom0, DomId(domid));
        let stop = AtomicBool::new(false);
        let rings = [back.tx.memory().clone(), back.rx.memory().clone()];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Indexes now and then, by a little.
                random::overwrite(&rings, domid.into(), &stop, |random, offset| {
                    Some(if offset <= RSP_EVENT { random.random_range(0..16) } else { random.next_u32() })
                });
            });
            let (mut into, started) = (vec![0; 65_536], Instant::now());
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
