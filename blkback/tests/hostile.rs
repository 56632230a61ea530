//! Front ends that lie, race and flood: the device alone is closed, and nobody else notices.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::raw::Raw;
use common::{BOUND, GUEST, Machine, XVDA, open, options};
use hypervisor::local::Domain;
use hypervisor::{Access, DomId, GrantRef, Hypervisor};
use ring_abi::blkif::{OP_READ, OP_WRITE, Status};
use xenstore::{Nodes, XenbusState};

const OTHER: DomId = DomId(2);

/// A machine with a hostile guest's disk, a good guest's disk, and the good guest.
struct Two {
    raw: Raw,
    good: Arc<Domain>,
    // Ends before the store does.
    back: common::Back,
    machine: Machine,
}

fn two() -> Two {
    let machine = Machine::new();
    let back = machine.back();
    let params = [("params", "ram:1048576")];
    let device = machine.attach(GUEST, XVDA, &params);
    machine.attach(OTHER, XVDA, &params);
    let raw = Raw::connect(&machine, machine.domain(GUEST), device);
    let good = machine.domain(OTHER);
    Two { raw, good, back, machine }
}

impl Two {
    /// The good guest writes and reads back.
    fn others_are_served(&self) {
        let mut disk = open(&self.good, options());
        disk.write_at(4096, &[5; 8192]).unwrap();
        let mut read = [0; 8192];
        disk.read_at(4096, &mut read).unwrap();
        assert!(read == [5; 8192]);
        disk.close().unwrap();
    }

    /// The hostile guest's device is closed, and why is told.
    fn is_closed(&self, text: &str) {
        let back = self.raw.device.back_path();
        self.machine.await_state(&back, XenbusState::Closing);
        let node = format!("/local/domain/0/error/backend/vbd/{GUEST}/{XVDA}/error");
        let error = self.machine.tool().read_text(&node).unwrap();
        assert!(error.contains(text), "{error}");
    }

    /// Nothing of the hostile guest's is mapped any more, once its ring is left aside.
    fn nothing_is_held(self) {
        let Two { machine: _machine, back, raw, .. } = self;
        back.stop();
        let Raw { hv, ring, memory, data, .. } = raw;
        drop((ring, memory, data));
        assert_eq!(hv.quarantined(DomId::DOM0), 0);
    }
}

#[test]
fn a_producer_index_that_ran_away_closes_the_device() {
    let two = two();
    two.raw.memory.words().store32(0, 1000);
    two.raw.channel.notify().unwrap();
    two.is_closed("producer index 1000");
    two.others_are_served();
    two.nothing_is_held();
}

#[test]
fn a_producer_index_that_runs_backwards_closes_the_device() {
    let mut two = two();
    let read = two.raw.io(OP_READ, 1, 0, &[0]);
    two.raw.send(&[read]);
    two.raw.receive(1);
    two.raw.memory.words().store32(0, 0);
    two.raw.channel.notify().unwrap();
    two.is_closed("producer index 0");
    two.others_are_served();
}

#[test]
fn grants_that_cannot_be_mapped_fail_their_request_alone() {
    let mut two = two();
    let free = two.raw.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
    let readonly = two.raw.hv.share(DomId::DOM0, 1, Access::ReadOnly).unwrap();
    let revoked = free.refs()[0];
    drop(free);
    let raw = &two.raw;
    let requests = [
        raw.io(OP_WRITE, 0, 0, &[0]),
        raw.io_of(OP_READ, 1, 0, [GrantRef(u32::MAX)]),
        raw.io_of(OP_READ, 2, 0, [raw.data.refs()[0], revoked]),
        raw.io_of(OP_READ, 3, 0, [readonly.refs()[0]]),
        raw.io_of(OP_WRITE, 4, 8, [readonly.refs()[0]]),
        raw.io_of(OP_READ, 5, 0, [GrantRef(0)]),
        // The same page twice is no error.
        raw.io(OP_READ, 6, 0, &[3, 3, 4]),
        raw.io(OP_READ, 7, 0, &[5]),
    ];
    two.raw.send(&requests);
    let statuses: Vec<_> = two.raw.receive(8).iter().map(|a| a.status).collect();
    let (okay, error) = (Status::OKAY, Status::ERROR);
    assert_eq!(statuses, [okay, error, error, error, okay, error, okay, okay]);
    drop(readonly);
    two.nothing_is_held();
}

#[test]
fn a_page_revoked_under_way_is_quarantined() {
    let mut two = two();
    // Many rounds, so that some revocations meet the mapping.
    for round in 0..200 {
        let page = two.raw.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
        let request = two.raw.io_of(OP_READ, round, 0, [page.refs()[0]]);
        two.raw.send(&[request]);
        drop(page);
        assert!([Status::OKAY, Status::ERROR].contains(&two.raw.receive(1)[0].status));
    }
    drop(two.raw.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
    two.nothing_is_held();
}

#[test]
fn responses_leave_no_octet_unwritten() {
    let mut two = two();
    let words = two.raw.memory.clone();
    let request = two.raw.io(OP_READ, 0x0102_0304_0506_0708, 0, &[0]);
    // What stands in the slot is of 0xaa where the request is silent.
    (64..176).step_by(4).for_each(|at| words.words().store32(at, 0xaaaa_aaaa));
    two.raw.send(&[request]);
    two.raw.receive(1);
    let words = words.words();
    assert_eq!((words.load32(64), words.load32(68)), (0x0506_0708, 0x0102_0304));
    assert_eq!((words.load32(72), words.load32(76)), (0, 0));
}

#[test]
fn a_racing_mutator_harms_nobody() {
    let mut two = two();
    let (stop, words) = (Arc::new(AtomicBool::new(false)), two.raw.memory.clone());
    let mut end = Instant::now() + Duration::from_millis(500);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 1u32;
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Slots only: operation, count, sector and segments change under the back end's eyes.
                let at = 64 + 4 * ((state >> 8) as usize % (32 * 112 / 4));
                words.words().store32(at, ((state % 13) << 8) | ((state >> 24) & 1));
            }
        });
        let mut id = 0;
        while Instant::now() < end {
            let requests: Vec<_> =
                (0..16).map(|n| two.raw.io(OP_WRITE, id + n, 8 * n, &[n as usize % 11])).collect();
            two.raw.send(&requests);
            id += 16;
            let mut seen = 0;
            while seen < 16 && Instant::now() < end + BOUND {
                match two.raw.ring.pop() {
                    Ok(Some(_)) => seen += 1,
                    Ok(None) => std::thread::yield_now(),
                    Err(fault) => panic!("{fault}"),
                }
            }
            assert_eq!(seen, 16, "every slot is answered, whatever became of its octets");
        }
        end = Instant::now();
        stop.store(true, Ordering::Relaxed);
    });
    two.others_are_served();
    two.nothing_is_held();
}

#[test]
fn a_storm_of_events_is_slowed() {
    let two = two();
    let stats = two.back.registry.lock().unwrap()[&(GUEST.0, XVDA)].clone();
    let (start, before) = (Instant::now(), stats.wakeups());
    let (mut sent, storm) = (0u64, Duration::from_millis(400));
    while start.elapsed() < storm {
        two.raw.channel.notify().unwrap();
        sent += 1;
    }
    let wakeups = stats.wakeups() - before;
    // 32 at once and then one every two milliseconds, with room for a slow machine.
    let bound = 32 + 2 * start.elapsed().as_millis() as u64;
    assert!(wakeups <= bound, "{wakeups} wake-ups for {sent} events, expected at most {bound}");
    let mut two = two;
    let read = two.raw.io(OP_READ, 1, 0, &[0]);
    two.raw.send(&[read]);
    assert_eq!(two.raw.receive(1)[0].status, Status::OKAY);
}

#[test]
fn a_flood_of_writes_to_the_state_disturbs_nobody() {
    let two = two();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tool = two.machine.tool();
            let path = two.raw.device.front_path();
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                tool.write(&format!("{path}/state"), "4").unwrap();
                tool.write(&format!("{path}/state/{}", n % 500), "x").unwrap();
                n += 1;
            }
        });
        for _ in 0..3 {
            two.others_are_served();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn keys_of_any_form_are_refused_by_name_and_may_be_mended() {
    for (key, value, text) in [
        ("ring-ref", "4294967295", "mapping the ring"),
        ("ring-ref", "-1", "ring-ref: found \"-1\", expected u32"),
        ("event-channel", "4294967295", "event channel"),
        ("event-channel", "x", "event-channel: found \"x\""),
        ("ring-page-order", "1000", "ring-page-order: found \"1000\""),
        ("protocol", "m68k-abi", "protocol: found \"m68k-abi\""),
    ] {
        let machine = Machine::new();
        let _back = machine.back();
        let device = machine.attach(GUEST, XVDA, &[("params", "ram:1048576")]);
        let hv = machine.domain(GUEST);
        machine.await_state(&device.back_path(), XenbusState::InitWait);
        let page = hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap();
        let front = device.front_path();
        let set = |key: &str, value: &str| machine.tool().write(&format!("{front}/{key}"), value).unwrap();
        set("ring-ref", &page.refs()[0].to_string());
        set("event-channel", "1");
        set(key, value);
        set("state", "3");
        machine.await_state(&device.back_path(), XenbusState::Closing);
        let node = format!("/local/domain/0/error/backend/vbd/{GUEST}/{XVDA}/error");
        let error = machine.tool().read_text(&node).unwrap();
        assert!(error.contains(text), "{key}: {error}");
        // The guest thinks better of it.
        set("state", "6");
        machine.await_state(&device.back_path(), XenbusState::Closed);
        machine.tool().rm(&format!("{front}/{key}")).unwrap();
        open(&hv, options()).close().unwrap();
    }
}
