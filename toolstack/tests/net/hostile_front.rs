//! Front ends that lie and race: each is cut off or refused, alone, and everybody else goes on.

use crate::machine::{BOUND, Machine, frame, receive, send};
use crate::raw::Raw;
use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Port};
use ring_abi::GrantRef;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{RxRequest, TxFlags, TxRequest, TxSlot};
use ring_abi::shm::Memory;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use xenstore::{Nodes, XenbusState};

const OKAY: i16 = 0;
const ERROR: i16 = -1;
const NULL: i16 = 1;

/// Two honest guests still talk.
fn honest_guests_talk(machine: &Machine) {
    let (mut a, mut b) = (machine.guest(20, Default::default()), machine.guest(21, Default::default()));
    let (octets, mut into) = (frame(b.mac(), a.mac(), 1000, 5), vec![0; 2048]);
    send(&mut a, &octets);
    a.flush();
    while receive(&mut b, &mut into).0 != 1000 {}
}

/// This vif is closed with one error in the store, and nothing else is.
fn is_cut_off(machine: &Machine, raw: &mut Raw, why: &str) {
    machine.await_state(&raw.device.back_path(), XenbusState::Closing);
    let path = format!("/local/domain/0/error/backend/vif/{}/0/error", raw.device.front);
    let text = machine.client().read_text(&path).unwrap();
    assert!(text.contains(why), "{text:?} does not say {why:?}");
    assert!(
        machine.bridge.ports().unwrap().iter().all(|port| port.name != format!("vif{}.0", raw.device.front))
    );
    honest_guests_talk(machine);
    raw.end.switch_state(&mut raw.client, XenbusState::Closed).unwrap();
    machine.await_state(&raw.device.back_path(), XenbusState::Closed);
}

fn push(raw: &mut Raw, slots: &[TxSlot]) {
    slots.iter().for_each(|slot| assert!(raw.tx.push(slot)));
    raw.kick();
}

#[test]
fn a_producer_out_of_range_is_a_fault() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    overwrite(raw.tx_words(), 0, 1000);
    raw.event.notify().unwrap();
    is_cut_off(&machine, &mut raw, "producer index");
}

#[test]
fn twenty_one_slots_are_a_fault() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    let slots: Vec<TxSlot> = (0..21).map(|id| raw.request(id, 0, 60, TxFlags::MORE_DATA).into()).collect();
    push(&mut raw, &slots);
    is_cut_off(&machine, &mut raw, "slots");
}

#[test]
fn octets_past_the_page_are_a_fault() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    let slot = raw.request(0, 4090, 60, TxFlags::empty()).into();
    push(&mut raw, &[slot]);
    is_cut_off(&machine, &mut raw, "cross the page's end");
}

#[test]
fn extras_that_nobody_knows_are_a_fault() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    let first = raw.request(0, 0, 60, TxFlags::EXTRA_INFO).into();
    push(&mut raw, &[first, Extra { more: false, kind: Kind::Unknown(77) }.into()]);
    is_cut_off(&machine, &mut raw, "unknown type 77");
}

#[test]
fn bad_packets_are_answered_and_good_ones_between_them_pass() {
    Machine::each(|machine| {
        let (inner, mut outer) = Pair::new(Caps::full(1500), 64).unwrap();
        machine.bridge.attach("dom0", Box::new(inner)).unwrap();
        let mut raw = Raw::connect(machine, 1);
        let more = TxFlags::MORE_DATA;
        let good = |raw: &Raw, id| raw.request(id, 0, 60, TxFlags::empty()).into();
        let bad_gref = TxRequest { gref: GrantRef(3000), ..raw.request(2, 0, 60, TxFlags::empty()) };
        let bad_body = TxRequest { gref: GrantRef(3000), ..raw.request(7, 0, 1000, TxFlags::empty()) };
        let slots = [
            good(&raw, 0),
            raw.request(1, 0, 13, TxFlags::empty()).into(),
            bad_gref.into(),
            good(&raw, 3),
            // 64 KiB and more: the sum overflowed, and the second slot is larger than all of it.
            raw.request(4, 0, 100, more).into(),
            raw.request(5, 0, 4096, TxFlags::empty()).into(),
            // A header in the first slot and a payload that cannot be mapped.
            raw.request(6, 0, 1200, more).into(),
            bad_body.into(),
            raw.request(8, 0, 60, TxFlags::EXTRA_INFO).into(),
            Extra { more: false, kind: Kind::McastAdd([1, 0, 0x5e, 0, 0, 1]) }.into(),
            // A blank checksum in octets that are no packet with one.
            raw.request(9, 0, 60, TxFlags::CSUM_BLANK).into(),
            good(&raw, 10),
        ];
        push(&mut raw, &slots);
        let mut answers: Vec<_> = slots.iter().map(|_| raw.answer()).collect();
        answers.sort();
        let mut expected = vec![
            (0, OKAY),
            (0, NULL),
            (1, ERROR),
            (2, ERROR),
            (3, OKAY),
            (4, ERROR),
            (5, ERROR),
            (6, ERROR),
            (7, ERROR),
            (8, ERROR),
            (9, OKAY),
            (10, OKAY),
        ];
        expected.sort();
        assert_eq!(answers, expected);
        let (mut batch, mut frames, deadline) = (Batch::new(64), 0, Instant::now() + BOUND);
        while frames < 3 {
            assert!(Instant::now() < deadline);
            outer.recv(&mut batch).unwrap();
            frames += batch.len();
            batch.clear();
        }
        assert_eq!((frames, machine.state(&raw.device.back_path())), (3, XenbusState::Connected));
    });
}

#[test]
fn headers_split_over_eighteen_slots_of_an_octet_are_put_together() {
    Machine::each(|machine| {
        let (inner, mut outer) = Pair::new(Caps::full(1500), 64).unwrap();
        machine.bridge.attach("dom0", Box::new(inner)).unwrap();
        let mut raw = Raw::connect(machine, 1);
        let octets: Vec<u8> = (0..18).collect();
        raw.page.slice(100, 18).unwrap().copy_from(&octets);
        let slots: Vec<TxSlot> = (0..18u16)
            .map(|id| {
                let flags = if id < 17 { TxFlags::MORE_DATA } else { TxFlags::empty() };
                raw.request(id, 100 + id, if id == 0 { 18 } else { 1 }, flags).into()
            })
            .collect();
        push(&mut raw, &slots);
        // And with slots of nothing at all among them.
        let empty = raw.request(31, 0, 0, TxFlags::MORE_DATA);
        let slots = [
            raw.request(30, 100, 18, TxFlags::MORE_DATA).into(),
            empty.into(),
            TxRequest { id: 32, ..empty }.into(),
            raw.request(33, 114, 4, TxFlags::empty()).into(),
        ];
        push(&mut raw, &slots);
        let (mut batch, deadline) = (Batch::new(64), Instant::now() + BOUND);
        while batch.len() < 2 {
            assert!(Instant::now() < deadline);
            outer.recv(&mut batch).unwrap();
        }
        assert!(batch.frames().iter().all(|frame| frame.to_vec() == octets));
        assert!((0..22).all(|_| raw.answer().1 == OKAY));
    });
}

#[test]
fn a_bad_receive_buffer_costs_one_frame() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    let good = raw.page.refs()[0];
    for (id, gref) in [(0, good), (1, GrantRef(3000)), (2, good)] {
        assert!(raw.rx.push(&RxRequest { id, gref }));
    }
    raw.kick();
    let mut sender = machine.guest(2, Default::default());
    for seed in 0..3 {
        let octets = frame([255; 6], sender.mac(), 100, seed);
        send(&mut sender, &octets);
        sender.flush();
    }
    let deadline = Instant::now() + BOUND;
    let mut statuses = Vec::new();
    while statuses.len() < 3 {
        assert!(Instant::now() < deadline);
        if let Some(slot) = raw.rx.pop().unwrap() {
            statuses.push((slot.response().id, slot.response().status));
        }
    }
    assert_eq!(statuses, [(0, 100), (1, ERROR), (2, 100)]);
}

/// XSA-392, and more: a guest that takes nothing neither fills dom0 nor holds those who send to it.
#[test]
fn a_guest_that_takes_nothing_harms_nobody() {
    let machine = Machine::new();
    let mut raw = Raw::connect(&machine, 1);
    // It is heard from once, so that frames for it go nowhere else.
    let mut hello = frame([255; 6], [2, 9, 9, 9, 9, 9], 60, 0);
    raw.page.slice(0, 60).unwrap().copy_from(&hello);
    hello.clear();
    let slot = raw.request(0, 0, 60, TxFlags::empty()).into();
    push(&mut raw, &[slot]);
    assert_eq!(raw.answer(), (0, OKAY));
    let (mut a, mut b) = (machine.guest(2, Default::default()), machine.guest(3, Default::default()));
    // Ten rings full, of frames that would hold a page each.
    for seed in 0..2560 {
        let octets = frame([2, 9, 9, 9, 9, 9], a.mac(), 1400, seed as u8);
        send(&mut a, &octets);
        a.flush();
    }
    let (octets, mut into) = (frame(b.mac(), a.mac(), 1000, 5), vec![0; 2048]);
    send(&mut a, &octets);
    a.flush();
    while receive(&mut b, &mut into).0 != 1000 {}
    let ports = machine.bridge.ports().unwrap();
    let stuck = ports.iter().find(|port| port.name == "vif1.0").unwrap();
    assert!(stuck.counters.dropped(bridge::Reason::NoRoom) >= 2560 - 256, "{stuck:?}");
}

/// A guest that rings without end is served no more often than others.
#[test]
fn a_storm_of_events_disturbs_nobody() {
    let machine = Machine::new();
    let raw = Raw::connect(&machine, 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = raw.event.notify();
            }
        });
        honest_guests_talk(&machine);
        stop.store(true, Relaxed);
    });
    assert_eq!(machine.state(&raw.device.back_path()), XenbusState::Connected);
}

/// Everything the guest can write changes all the time: rings, payload and grants.
#[test]
fn a_guest_that_changes_everything_meanwhile_gains_nothing() {
    Machine::each(|machine| {
        let (inner, mut outer) = Pair::new(Caps::plain(1500), 64).unwrap();
        machine.bridge.attach("dom0", Box::new(inner)).unwrap();
        for round in 1..6u16 {
            let mut raw = Raw::connect(machine, round);
            let words = [raw.tx_words(), raw.rx_words(), raw.payload_words()];
            let (stop, seed) = (AtomicBool::new(false), u32::from(round));
            let started = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| mutate(&words, &stop, seed));
                let mut batch = Batch::new(64);
                while started.elapsed() < Duration::from_millis(300) {
                    let _ = raw.event.notify();
                    for id in 0..4 {
                        let size = 60 + (id * 500) % 1400;
                        let flags = if id == 2 { TxFlags::CSUM_BLANK } else { TxFlags::empty() };
                        let _ = raw.tx.push(&raw.request(id, 0, size, flags).into());
                    }
                    let _ = raw.tx.commit();
                    let _ = raw.tx.look();
                    while let Ok(Some(_)) = raw.tx.pop() {}
                    outer.recv(&mut batch).unwrap();
                    // What passed once passes twice: the head is private.
                    for frame in batch.frames() {
                        assert!(frame.len() >= 14 && frame.len() <= 65_535);
                        assert_eq!(frame.head(), frame.clone().head());
                    }
                    batch.clear();
                }
                stop.store(true, Relaxed);
            });
            honest_guests_talk(machine);
            let mut client = machine.client();
            for path in [raw.device.back_path(), raw.device.front_path()] {
                client.rm(&path).unwrap();
            }
            for domid in [20, 21] {
                let _ = client.rm(&format!("/local/domain/0/backend/vif/{domid}"));
                let _ = client.rm(&format!("/local/domain/{domid}/device/vif"));
            }
        }
    });
}

/// Words that two sides write. Their front end is kept as long as they are used.
type Words = &'static [AtomicU32];

fn overwrite(words: Words, at: usize, value: u32) {
    words[at].store(value, Relaxed);
}

fn mutate(pages: &[Words], stop: &AtomicBool, seed: u32) {
    let mut state = seed | 1;
    while !stop.load(Relaxed) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let page = pages[state as usize % pages.len()];
        let at = (state >> 8) as usize % page.len();
        // Indexes are left alone most of the time: a wrong one ends the game.
        if at > 3 || state & 0xff00_0000 == 0 {
            page[at].store(state.rotate_left(7), Relaxed);
        }
    }
}

impl Raw {
    fn tx_words(&self) -> Words {
        words(self.tx.memory())
    }
    fn rx_words(&self) -> Words {
        words(self.rx.memory())
    }
    fn payload_words(&self) -> Words {
        words(&self.page)
    }
}

#[allow(unsafe_code)] // A page of shared memory as atomics.
fn words(memory: &impl Memory) -> Words {
    // SAFETY: a page, aligned, and mapped as long as the front end lives, which every test keeps until its end; only
    // ever used as atomics here.
    unsafe { std::slice::from_raw_parts(memory.base().as_ptr().cast(), 1024) }
}
