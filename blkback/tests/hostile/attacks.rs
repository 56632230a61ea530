//! The attacks: each is a function that panics if the backend does not withstand it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Platform, assert_others_served, open};
use event_loop::storm_guard::SPURIOUS_BURST;
use grant_table::{Access, Shared};
use rand::RngExt;
use ring_abi::blkif::{Discard, Io, OP_READ, OP_WRITE, Request, Segment, Status, X86_64, key};
use ring_abi::ring::Protocol;
use ring_abi::shm::HEADER_LEN;
use ring_abi::testing::words;
use ring_abi::{DomId, GrantRef};
use testkit::block::RawFrontend;
use testkit::random;
use xenbus::XenbusState;
use xenstore::Nodes;

pub(crate) use crate::indirect::*;
pub(crate) use crate::queues::*;

const OKAY: Status = Status::OKAY;
const ERROR: Status = Status::ERROR;

pub(super) fn raw(platform: &dyn Platform) -> RawFrontend {
    RawFrontend::connect(platform.attacked(), key::PROTOCOL_X86_64, platform.persistent())
}

pub(crate) fn producer_index_beyond_the_ring_closes_the_device(platform: &mut dyn Platform) {
    let raw = raw(platform);
    words(&raw.memory).store32(0, 1000);
    raw.channel.notify().unwrap();
    platform.assert_closed("producer index 1000");
    assert_others_served(platform);
    platform.assert_unmapped(raw);
}

pub(crate) fn producer_index_that_decreases_closes_the_device(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let read = raw.io(OP_READ, 1, 0, &[0]);
    raw.send(&[read]);
    raw.receive(1);
    words(&raw.memory).store32(0, 0);
    raw.channel.notify().unwrap();
    platform.assert_closed("producer index 0");
    assert_others_served(platform);
    platform.assert_unmapped(raw);
}

pub(crate) fn grants_that_cannot_be_mapped_fail_their_request_alone(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let hv = raw.device.hv.clone();
    let free = hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
    let readonly = hv.share(DomId::DOM0, 1, Access::ReadOnly).unwrap();
    let revoked = free.refs()[0];
    drop(free);
    let requests = [
        raw.io(OP_WRITE, 0, 0, &[0]),
        raw.io_of(OP_READ, 1, 0, [GrantRef(u32::MAX)]),
        raw.io_of(OP_READ, 2, 0, [raw.data.refs()[0], revoked]),
        raw.io_of(OP_READ, 3, 0, [readonly.refs()[0]]),
        raw.io_of(OP_WRITE, 4, 8, [readonly.refs()[0]]),
        // A reserved reference that is not granted.
        raw.io_of(OP_READ, 5, 0, [GrantRef(5)]),
        // The same page twice is no error.
        raw.io(OP_READ, 6, 0, &[3, 3, 4]),
        raw.io(OP_READ, 7, 0, &[5]),
    ];
    raw.send(&requests);
    let statuses: Vec<_> = raw.receive(8).iter().map(|response| response.status).collect();
    // Persistent grants are mapped for reading and writing.
    let from_readonly = if platform.persistent() { ERROR } else { OKAY };
    assert_eq!(statuses, [OKAY, ERROR, ERROR, ERROR, from_readonly, ERROR, OKAY, OKAY]);
    drop(readonly);
    platform.assert_unmapped(raw);
}

pub(crate) fn invalid_requests_are_answered_with_an_error(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let gref = raw.data.refs()[0];
    let io = |id: u64, sector_number: u64, nr_segments: u8, (first_sect, last_sect): (u8, u8)| {
        let segments = [Segment { gref, first_sect, last_sect }].into_iter().collect();
        Request::Io(Io { operation: OP_READ, handle: 0, id, sector_number, nr_segments, segments })
    };
    let discard = Discard { flag: 0, handle: 0, id: 11, sector_number: u64::MAX, nr_sectors: u64::MAX };
    let whole = (0, 7);
    let requests = [
        io(0, 0, 0, whole),
        io(1, 0, 12, whole),
        io(2, 0, 255, whole),
        io(3, 0, 1, (5, 4)),
        io(4, 0, 1, (0, 8)),
        io(5, 0, 1, (255, 255)),
        io(6, 1 << 40, 1, whole),
        io(7, u64::MAX, 1, whole),
        io(8, u64::MAX - 7, 1, whole),
        Request::Unknown { operation: 4, id: 9 },
        Request::Unknown { operation: 255, id: 10 },
        Request::Discard(discard),
        io(12, 0, 1, whole),
    ];
    raw.send(&requests);
    let statuses: Vec<_> = raw.receive(requests.len()).iter().map(|response| response.status).collect();
    let unknown = Status::EOPNOTSUPP;
    assert_eq!(statuses, [&[ERROR; 9][..], &[unknown; 2], &[ERROR, OKAY]].concat());
    platform.assert_unmapped(raw);
}

pub(crate) fn page_revoked_in_flight_is_quarantined(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let hv = raw.device.hv.clone();
    // Many rounds, so that some pages are revoked while they are mapped.
    for round in 0..200 {
        let page = match hv.share(DomId::DOM0, 1, Access::ReadWrite) {
            // The backend keeps all pages of the attacker mapped.
            Err(_) if platform.persistent() => break,
            page => page.unwrap(),
        };
        let request = raw.io_of(OP_READ, round, 0, [page.refs()[0]]);
        raw.send(&[request]);
        drop(page);
        assert!([OKAY, ERROR].contains(&raw.receive(1)[0].status));
    }
    platform.assert_unmapped(raw);
}

pub(crate) fn response_overwrites_every_byte_of_the_slot_header(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let memory = raw.memory.clone();
    let ring = words(&memory);
    let request = raw.io(OP_READ, 0x0102_0304_0506_0708, 0, &[0]);
    // Bytes of the slot that the request does not write are 0xaa.
    (64..176).step_by(4).for_each(|at| ring.store32(at, 0xaaaa_aaaa));
    raw.send(&[request]);
    raw.receive(1);
    assert_eq!((ring.load32(64), ring.load32(68)), (0x0506_0708, 0x0102_0304));
    assert_eq!((ring.load32(72), ring.load32(76)), (0, 0));
}

pub(crate) fn slots_overwritten_during_reads_are_all_answered(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let stop = AtomicBool::new(false);
    let memory = [raw.memory.clone()];
    let end = Instant::now() + Duration::from_millis(500);
    std::thread::scope(|scope| {
        scope.spawn(|| mutate(&memory, &stop));
        let mut id = 0;
        while Instant::now() < end {
            let requests: Vec<_> =
                (0..16).map(|n| raw.io(OP_WRITE, id + n, 8 * n, &[n as usize % 11])).collect();
            raw.send(&requests);
            id += 16;
            // Every slot is answered, with any content.
            raw.receive(16);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_others_served(platform);
    drop(memory);
    platform.assert_unmapped(raw);
}

/// Overwrites operation, count, sector and segments of slots while the backend reads them.
fn mutate(ring: &[Arc<Shared>], stop: &AtomicBool) {
    let slots = HEADER_LEN..HEADER_LEN + 32 * X86_64::SLOT;
    random::overwrite(ring, 1, stop, |random, offset| {
        slots.contains(&offset).then(|| random.random_range(0..13) << 8 | random.random_range(0..2))
    });
}

pub(crate) fn event_storm_wakes_the_backend_at_a_limited_rate(platform: &mut dyn Platform) {
    let mut raw = raw(platform);
    let start = Instant::now();
    let before = platform.wakeups();
    let mut sent = 0u64;
    let storm = Duration::from_millis(400);
    while start.elapsed() < storm {
        raw.channel.notify().unwrap();
        sent += 1;
    }
    println!("\nsent {sent} events in {} ms", start.elapsed().as_millis());
    if let (Some(before), Some(after)) = (before, platform.wakeups()) {
        // The burst that is tolerated, and then for each millisecond the end of a mask and one event; twice that rate allows
        // for a slow machine.
        let wakeups = after - before;
        let bound = SPURIOUS_BURST + 4 * start.elapsed().as_millis() as u64;
        assert!(wakeups <= bound, "{wakeups} wake-ups for {sent} events, expected at most {bound}");
    }
    let read = raw.io(OP_READ, 1, 0, &[0]);
    raw.send(&[read]);
    assert_eq!(raw.receive(1)[0].status, OKAY);
}

pub(crate) fn state_written_in_a_loop_leaves_other_devices_served(platform: &mut dyn Platform) {
    let raw = raw(platform);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut store = raw.device.store();
            let path = format!("{}/{}", raw.device.device.front_path(), key::STATE);
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                store.write(&path, XenbusState::Connected.as_text()).unwrap();
                store.write(&format!("{path}/{}", n % 500), "x").unwrap();
                n += 1;
            }
            (0..n.min(500)).for_each(|n| store.rm(&format!("{path}/{n}")).unwrap());
        });
        for _ in 0..3 {
            assert_others_served(platform);
        }
        stop.store(true, Ordering::Relaxed);
    });
    platform.assert_unmapped(raw);
}

/// All grants are revoked while requests that use them are in flight.
pub(crate) fn frontend_that_vanishes_in_flight_is_closed(platform: &mut dyn Platform) {
    for round in 0..10 {
        let mut raw = raw(platform);
        let requests: Vec<_> =
            (0..32).map(|id| raw.io(OP_READ, id, 8 * id, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])).collect();
        raw.send(&requests);
        if round % 2 == 1 {
            raw.receive(1);
        }
        let device = raw.device.clone();
        drop(raw);
        device.switch(XenbusState::Closed);
        device.wait_for_backend(XenbusState::Closed);
        device.switch(XenbusState::Initialising);
    }
    assert_others_served(platform);
    let raw = raw(platform);
    platform.assert_unmapped(raw);
}

pub(crate) fn invalid_key_is_named_and_may_be_corrected(platform: &mut dyn Platform) {
    let device = platform.attacked();
    for (name, value, words) in [
        (key::RING_REF, "4294967295", "mapping the ring"),
        (key::RING_REF, "-1", "ring-ref: found \"-1\", expected u32"),
        (key::RING_REF, "99999999999999999999", "ring-ref: found \"99999999999999999999\""),
        (key::RING_REF, "", "ring-ref: "),
        (key::RING_REF, "five", "ring-ref: found \"five\""),
        (key::EVENT_CHANNEL, "4294967295", "event channel"),
        (key::EVENT_CHANNEL, "x", "event-channel: found \"x\""),
        (key::RING_PAGE_ORDER, "1000", "ring-page-order: found \"1000\""),
        (key::RING_PAGE_ORDER, "2", "ring-ref0: "),
        (key::NUM_RING_PAGES, "3", "num-ring-pages: found \"3\""),
        (key::PROTOCOL, "m68k-abi", "protocol: found \"m68k-abi\""),
    ] {
        device.switch(XenbusState::Initialising);
        device.wait_for_backend(XenbusState::InitWait);
        let page = device.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
        device.set(key::RING_REF, page.refs()[0]);
        device.set(key::EVENT_CHANNEL, 1);
        device.set(name, value);
        device.switch(XenbusState::Initialised);
        platform.assert_closed(words);
        // The guest corrects the key.
        device.switch(XenbusState::Closed);
        device.wait_for_backend(XenbusState::Closed);
        device.remove(name);
        open(&device).close().unwrap();
    }
}

pub(crate) fn keys_rewritten_while_connecting_leave_the_backend_working(platform: &mut dyn Platform) {
    let device = platform.attacked();
    let mut store = device.store();
    let pages: Vec<_> = (0..4).map(|_| device.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap()).collect();
    let mut random = random::generator(7);
    for _ in 0..500 {
        let [a, b]: [u8; 2] = random.random();
        let page = pages[usize::from(b) % 4].refs()[0].0;
        let (name, value) = match a % 11 {
            0 => (key::RING_REF, page.to_string()),
            1 => (key::RING_REF, random.random::<u32>().to_string()),
            2 => (key::EVENT_CHANNEL, (b % 64).to_string()),
            3 => (
                key::PROTOCOL,
                [key::PROTOCOL_X86_64, key::PROTOCOL_X86_32, "none"][usize::from(b) % 3].to_owned(),
            ),
            4 => (key::RING_PAGE_ORDER, (b % 8).to_string()),
            5 => ("ring-ref0", page.to_string()),
            8 => (key::MULTI_QUEUE_NUM_QUEUES, (b % 4).to_string()),
            9 => (["queue-0/ring-ref", "queue-1/ring-ref"][usize::from(b) % 2], page.to_string()),
            10 => {
                (["queue-0/event-channel", "queue-1/event-channel"][usize::from(b) % 2], (b % 64).to_string())
            }
            _ => (key::STATE, (1 + b % 6).to_string()),
        };
        store.write(&format!("{}/{name}", device.device.front_path()), value).unwrap();
    }
    assert_others_served(platform);
    // After valid keys the device connects, whatever the last state was.
    device.switch(XenbusState::Closed);
    for name in [key::PROTOCOL, key::RING_PAGE_ORDER, "ring-ref0", key::MULTI_QUEUE_NUM_QUEUES] {
        device.remove(name);
    }
    open(&device).close().unwrap();
    drop(pages);
}
