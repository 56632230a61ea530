//! The attacks: each is a function that panics if the backend does not withstand it.

use super::{Platform, assert_honest_served, assert_only_attacker_closed, receives, until_up};
use grant_table::Shared;
use rand::{Rng, RngExt};
use ring_abi::GrantRef;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{RxRequest, Status, TxFlags, TxRequest, TxSlot};
use ring_abi::testing::{REQ_PROD, RSP_EVENT, words};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::{RawFrontend, frame, send};
use testkit::{BOUND, random};
use xenbus::XenbusState;

const OKAY: i16 = Status::OKAY.0;
const ERROR: i16 = Status::ERROR.0;
const NULL: i16 = Status::NULL.0;
/// A grant reference that was never granted.
const UNGRANTED: GrantRef = GrantRef(3000);

fn push(raw: &mut RawFrontend, slots: &[TxSlot]) {
    slots.iter().for_each(|slot| assert!(raw.tx.push(slot)));
    raw.commit();
}

pub(super) fn producer_index_out_of_range_closes_the_vif(platform: &mut dyn Platform) {
    let raw = RawFrontend::connect(platform.attacked());
    words(raw.tx.memory()).store32(REQ_PROD, 1000);
    raw.event.notify().unwrap();
    assert_only_attacker_closed(platform, raw, "producer index");
}

pub(super) fn packet_of_twenty_one_slots_closes_the_vif(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    let slots: Vec<TxSlot> = (0..21).map(|id| raw.request(id, 0, 60, TxFlags::MORE_DATA).into()).collect();
    push(&mut raw, &slots);
    assert_only_attacker_closed(platform, raw, "slots");
}

pub(super) fn request_across_the_page_end_closes_the_vif(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    let slot = raw.request(0, 4090, 60, TxFlags::empty()).into();
    push(&mut raw, &[slot]);
    assert_only_attacker_closed(platform, raw, "cross the page's end");
}

pub(super) fn extra_of_an_unknown_type_closes_the_vif(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    let first = raw.request(0, 0, 60, TxFlags::EXTRA_INFO).into();
    push(&mut raw, &[first, Extra { more: false, kind: Kind::Unknown(77) }.into()]);
    assert_only_attacker_closed(platform, raw, "unknown type 77");
}

pub(super) fn invalid_packets_are_answered_and_valid_ones_forwarded(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    let more = TxFlags::MORE_DATA;
    // A broadcast frame that differs from every other.
    let sent = frame([255; 6], [2, 9, 9, 9, 9, 9], 60, 77);
    raw.page.slice(0, 60).unwrap().copy_from(&sent);
    let good = |raw: &RawFrontend, id| raw.request(id, 0, 60, TxFlags::empty()).into();
    let bad_gref = TxRequest { gref: UNGRANTED, ..raw.request(2, 0, 60, TxFlags::empty()) };
    let bad_body = TxRequest { gref: UNGRANTED, ..raw.request(7, 0, 1000, TxFlags::empty()) };
    let slots = [
        good(&raw, 0),
        raw.request(1, 0, 13, TxFlags::empty()).into(),
        bad_gref.into(),
        good(&raw, 3),
        // The packet's size is less than its second slot's.
        raw.request(4, 0, 100, more).into(),
        raw.request(5, 0, 4096, TxFlags::empty()).into(),
        // The header is in the first slot; the payload's page cannot be mapped.
        raw.request(6, 0, 1200, more).into(),
        bad_body.into(),
        raw.request(8, 0, 60, TxFlags::EXTRA_INFO).into(),
        Extra { more: false, kind: Kind::McastAdd([1, 0, 0x5e, 0, 0, 1]) }.into(),
        // A blank checksum in a packet without TCP or UDP header.
        raw.request(9, 0, 60, TxFlags::CSUM_BLANK).into(),
        good(&raw, 10),
    ];
    until_up(platform.honest().each_mut());
    push(&mut raw, &slots);
    let mut responses: Vec<_> = slots.iter().map(|_| raw.response()).collect();
    responses.sort();
    let bad = [1, 2, 4, 5, 6, 7, 8].map(|id| (id, ERROR));
    let mut expected = [&[(0, OKAY), (0, NULL), (3, OKAY), (9, OKAY), (10, OKAY)][..], &bad].concat();
    expected.sort();
    assert_eq!(responses, expected);
    let mut frames = 0;
    receives(&mut platform.honest()[0], BOUND, |frame| {
        frames += usize::from(frame == sent);
        frames == 3
    });
    assert_eq!(frames, 3);
    raw.device.wait_for_backend(XenbusState::Connected);
    assert_honest_served(platform);
}

pub(super) fn header_split_over_eighteen_slots_is_assembled(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    until_up(platform.honest().each_mut());
    // To everybody: for an unknown address nothing is sent to guests that have another.
    let sent: Vec<u8> = [255; 6].into_iter().chain(6..18).collect();
    raw.page.slice(100, 18).unwrap().copy_from(&sent);
    let slots: Vec<TxSlot> = (0..18u16)
        .map(|id| {
            let flags = if id < 17 { TxFlags::MORE_DATA } else { TxFlags::empty() };
            raw.request(id, 100 + id, if id == 0 { 18 } else { 1 }, flags).into()
        })
        .collect();
    push(&mut raw, &slots);
    // Again with empty slots in between.
    let empty = raw.request(31, 0, 0, TxFlags::MORE_DATA);
    let slots = [
        raw.request(30, 100, 18, TxFlags::MORE_DATA).into(),
        empty.into(),
        TxRequest { id: 32, ..empty }.into(),
        raw.request(33, 114, 4, TxFlags::empty()).into(),
    ];
    push(&mut raw, &slots);
    let mut frames = 0;
    receives(&mut platform.honest()[0], BOUND, |frame| {
        frames += usize::from(frame == sent);
        frames == 2
    });
    assert_eq!(frames, 2);
    assert!((0..22).all(|_| raw.response().1 == OKAY));
}

pub(super) fn invalid_receive_buffer_loses_one_frame(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    let good = raw.page.refs()[0];
    for (id, gref) in [(0, good), (1, UNGRANTED), (2, good)] {
        assert!(raw.rx.push(&RxRequest { id, gref }));
    }
    raw.commit();
    until_up(platform.honest().each_mut());
    let [sender, _] = platform.honest();
    for seed in 0..3 {
        let sent = frame([255; 6], sender.mac(), 100, seed);
        send(sender, &sent);
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
    // The frames may be others' than ours: other stations may broadcast too.
    assert!(matches!(statuses[..], [(0, 1..), (1, ERROR), (2, 1..)]), "{statuses:?}");
}

/// A guest that receives nothing neither exhausts dom0's memory (XSA-392) nor blocks guests that send to it.
pub(super) fn guest_that_receives_nothing_delays_no_sender(platform: &mut dyn Platform) {
    let mut raw = RawFrontend::connect(platform.attacked());
    // The guest sends one frame, so that the bridge learns its address and does not flood frames to it.
    let mac = [2, 9, 9, 9, 9, 9];
    raw.page.slice(0, 60).unwrap().copy_from(&frame([255; 6], mac, 60, 0));
    let slot = raw.request(0, 0, 60, TxFlags::empty()).into();
    push(&mut raw, &[slot]);
    assert_eq!(raw.response(), (0, OKAY));
    until_up(platform.honest().each_mut());
    let [a, _] = platform.honest();
    // Ten times the ring's slots; a frame that is not copied when it waits keeps its page.
    for seed in 0..2560 {
        let sent = frame(mac, a.mac(), 1400, seed as u8);
        send(a, &sent);
        a.flush();
    }
    assert_honest_served(platform);
    // The others wait: copies of no more than 2 MiB.
    assert!(
        platform.dropped().is_none_or(|dropped| dropped >= 2560 - (2 << 20) / 1400 - 16),
        "{:?}",
        platform.dropped()
    );
}

/// A guest that sends events in a loop takes no time from others (XSA-391 is the same attack by a backend).
pub(super) fn event_storm_leaves_other_guests_served(platform: &mut dyn Platform) {
    let raw = RawFrontend::connect(platform.attacked());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = raw.event.notify();
            }
        });
        assert_honest_served(platform);
        stop.store(true, Relaxed);
    });
    raw.device.wait_for_backend(XenbusState::Connected);
}

/// The guest overwrites all that it can write, rings and payload, while the backend reads them.
pub(super) fn memory_overwritten_during_reads_leaves_other_guests_served(platform: &mut dyn Platform) {
    until_up(platform.honest().each_mut());
    for round in 1..6 {
        let device = platform.attacked();
        RawFrontend::reset(&device);
        let mut raw = RawFrontend::connect(device);
        let stop = AtomicBool::new(false);
        let memory = raw.memory();
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| overwrite(&memory, &stop, round));
            while started.elapsed() < Duration::from_millis(300) {
                let _ = raw.event.notify();
                for id in 0..4 {
                    let size = 60 + (id * 500) % 1400;
                    let flags = if id == 2 { TxFlags::CSUM_BLANK } else { TxFlags::empty() };
                    let _ = raw.tx.push(&raw.request(id, 0, size, flags).into());
                }
                let _ = raw.tx.commit();
                let _ = raw.tx.refresh();
                while let Ok(Some(_)) = raw.tx.pop() {}
                receives(&mut platform.honest()[0], Duration::ZERO, |frame| {
                    assert!((14..=65_535).contains(&frame.len()));
                    false
                });
            }
            stop.store(true, Relaxed);
        });
        assert_honest_served(platform);
    }
}

/// Overwrites random words of the pages until `stop` is set.
pub(super) fn overwrite(pages: &[Arc<Shared>], stop: &AtomicBool, seed: u64) {
    random::overwrite(pages, seed, stop, |random, offset| {
        // Indexes are overwritten rarely, as a wrong one closes the device.
        (offset > RSP_EVENT || random.random_ratio(1, 256)).then(|| random.next_u32())
    });
}
