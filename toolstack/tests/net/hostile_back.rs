//! Backends that lie and die: the interface drops what is wrong or goes down, and its guest lives on.

use crate::machine::{BOUND, Machine, until};
use hypervisor::{Access, Channel, Contiguous, DomId, EventPort, GrantRef, Hypervisor};
use netback::handshake::offer;
use netfront::Nic;
use ring_abi::netif::{Rx, RxFlags, RxResponse, Status, Tx, TxResponse};
use ring_abi::ring::Back;
use ring_abi::shm::Memory;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use xenstore::xenbus::{Device, DeviceEnd};
use xenstore::{Client, Keys, Nodes, XenbusState};

/// Both rings in the hands of somebody without manners.
struct RawBack {
    tx: Back<Tx, Contiguous>,
    rx: Back<Rx, Contiguous>,
    event: Box<dyn Channel>,
    device: Device,
    client: Client,
}

/// An interface that is up, and its backend.
fn connect(machine: &mut Machine, domid: u16) -> (Nic, RawBack) {
    machine.backend = None;
    let device = machine.plug(domid, 0, &[]);
    let (mut client, end) = (machine.client(), DeviceEnd::back(&device));
    let mut keys = offer(true);
    // One channel for both.
    keys.set("feature-split-event-channels", 0);
    end.publish(&mut client, &keys, XenbusState::InitWait).unwrap();
    let guest = machine.join(domid);
    let mut nic = machine.open(&guest, 0, netfront::Config::default());
    machine.await_state(&device.front_path(), XenbusState::Connected);
    let front = end.other_keys(&mut client).unwrap();
    let map = |key| {
        let gref = GrantRef(front.need(key).unwrap());
        machine.dom0.map_contiguous(DomId(domid), &[gref], Access::ReadWrite).unwrap()
    };
    let (tx, rx) = (Back::attach(map("tx-ring-ref")).unwrap(), Back::attach(map("rx-ring-ref")).unwrap());
    let event =
        machine.dom0.bind_interdomain(DomId(domid), EventPort(front.need("event-channel").unwrap())).unwrap();
    end.publish(&mut client, &Keys::default(), XenbusState::Connected).unwrap();
    until(&mut nic, Nic::is_up);
    (nic, RawBack { tx, rx, event, device, client })
}

/// The interface has nothing more to do with this backend, and says why.
fn is_shunned(nic: &mut Nic, back: &mut RawBack, why: &str) {
    let deadline = Instant::now() + BOUND;
    while nic.is_up() {
        assert!(Instant::now() < deadline, "still up");
        nic.send(&[0; 60]);
        nic.flush();
        nic.recv(&mut [0; 2048]);
        nic.turn().unwrap();
    }
    let path = format!("/local/domain/{0}/error/device/vif/0/error", back.device.front);
    // A guest that may not write there has it in its log only.
    if let Ok(text) = back.client.read_text(&path) {
        assert!(text.contains(why), "{text}");
    }
    nic.turn().unwrap();
    assert_eq!(nic.send(&[0; 60]), netfront::Sent::Dropped);
}

fn respond(back: &mut RawBack, response: impl Fn(u16) -> RxResponse) {
    let request = back.rx.pop().unwrap().expect("buffers are posted");
    back.rx.push(&response(request.id).into());
    let _ = back.rx.commit();
    back.event.notify().unwrap();
}

fn good(id: u16) -> RxResponse {
    RxResponse { id, offset: 0, flags: RxFlags::empty(), status: 60 }
}

#[test]
fn lies_about_bytes_cost_a_frame() {
    let mut machine = Machine::new();
    let (mut nic, mut back) = connect(&mut machine, 1);
    respond(&mut back, |id| RxResponse { offset: 4000, status: 97, ..good(id) });
    respond(&mut back, |id| RxResponse { offset: 0xffff, status: i16::MAX, ..good(id) });
    respond(&mut back, |id| RxResponse { status: -1, ..good(id) });
    respond(&mut back, |id| RxResponse { status: 13, ..good(id) });
    for _ in 0..31 {
        respond(&mut back, |id| RxResponse { flags: RxFlags::MORE_DATA, ..good(id) });
    }
    respond(&mut back, good);
    respond(&mut back, good);
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
    let mut machine = Machine::new();
    for (domid, id) in [(1, 255), (2, u16::MAX)] {
        let (mut nic, mut back) = connect(&mut machine, domid);
        nic.send(&[1; 60]);
        nic.flush();
        let deadline = Instant::now() + BOUND;
        while back.tx.pop().unwrap().is_none() {
            assert!(Instant::now() < deadline);
        }
        back.tx.push(&TxResponse { id, status: Status::OKAY });
        let _ = back.tx.commit();
        is_shunned(&mut nic, &mut back, "does not have");
    }
}

#[test]
fn a_response_in_the_wrong_slot_is_the_end() {
    let mut machine = Machine::new();
    let (mut nic, mut back) = connect(&mut machine, 1);
    respond(&mut back, |id| good(id.wrapping_add(1)));
    is_shunned(&mut nic, &mut back, "does not have");
}

#[test]
fn a_producer_out_of_range_is_the_end() {
    let mut machine = Machine::new();
    let (mut nic, mut back) = connect(&mut machine, 1);
    words(back.rx.memory())[2].store(5000, Relaxed);
    back.event.notify().unwrap();
    is_shunned(&mut nic, &mut back, "producer index");
}

/// XSA-391.
#[test]
fn a_storm_of_events_does_not_keep_the_interface_from_working() {
    let mut machine = Machine::new();
    let (mut nic, mut back) = connect(&mut machine, 1);
    let RawBack { rx, event, .. } = &mut back;
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
    let mut machine = Machine::new();
    for domid in 1..5 {
        let (mut nic, back) = connect(&mut machine, domid);
        let stop = AtomicBool::new(false);
        let pages = [words(back.tx.memory()), words(back.rx.memory())];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = u32::from(domid);
                while !stop.load(Relaxed) {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let (page, at) = (pages[(state >> 30) as usize & 1], (state >> 16) as usize % 1024);
                    // Indexes now and then, by a little.
                    let value = if at < 4 { state >> 28 } else { state.rotate_left(9) };
                    page[at].store(value, Relaxed);
                }
            });
            let (mut into, started) = (vec![0; 65_536], Instant::now());
            while started.elapsed() < Duration::from_millis(200) {
                nic.send(&[3; 1000]);
                nic.flush();
                nic.recv(&mut into);
                nic.turn().unwrap();
            }
            stop.store(true, Relaxed);
        });
    }
}

#[allow(unsafe_code)] // A page of shared memory as atomics.
fn words(memory: &impl Memory) -> &'static [AtomicU32] {
    // SAFETY: a page, aligned, and mapped as long as the backend lives, which every test keeps until its end; only
    // ever used as atomics here.
    unsafe { std::slice::from_raw_parts(memory.base().as_ptr().cast(), 1024) }
}
