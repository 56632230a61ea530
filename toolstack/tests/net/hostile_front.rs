//! Frontends that lie and race: each is cut off or refused, alone, and everybody else goes on.
//!
//! The attacks are in `attacks.rs`, by name, over a [`World`]: threads on the local hypervisor, or a guest of a
//! real Xen host, where `net hostile_front::xen::ATTACK` is one attack on its dom0 (`tests/xen/run hostile-vif`).

use crate::machine::{BOUND, Machine, frame};
use crate::raw::{Raw, Seat};
use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Port};
use hypervisor::InflightDir;
use netfront::{Config, Nic, SendOutcome};
use ring_abi::netif::TxFlags;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xenstore::{Nodes, XenbusState};

#[path = "attacks.rs"]
mod attacks;
#[path = "hostile_xen.rs"]
mod on_xen;

/// A bridge, the attacker's vif on it, and those of two that are honest.
trait World {
    /// The attacker's vif, waiting for its frontend.
    fn seat(&self) -> Seat;
    /// The honest ones' interfaces, open.
    fn honest(&mut self) -> &mut [Nic; 2];
    /// The attacker's vif was closed and is off the bridge, and why was told with these words.
    fn is_closed(&self, words: &str);
    /// Frames for the attacker that were dropped for want of room, where that can be seen.
    fn dropped(&self) -> Option<u64>;
}

fn open(seat: &Seat) -> Nic {
    Nic::open(seat.hv.clone(), seat.store(), seat.device.id, Config::default()).unwrap()
}

/// The honest ones still talk.
fn honest_guests_talk(world: &mut dyn World) {
    let [a, b] = world.honest();
    let bytes = frame(b.mac(), a.mac(), 1000, 5);
    let deadline = Instant::now() + BOUND;
    until_up([a, b]);
    // What the attacker sent to everybody may take the room of some.
    loop {
        assert!(Instant::now() < deadline, "no frame comes through");
        while a.send(&bytes) == SendOutcome::Full {
            assert!(Instant::now() < deadline, "no room");
            a.wait(true, Duration::from_millis(50)).unwrap();
        }
        a.flush();
        if received(b, Duration::from_millis(500), |frame| frame == bytes) {
            return;
        }
    }
}

fn until_up(nics: [&mut Nic; 2]) {
    for nic in nics {
        crate::machine::until(nic, Nic::is_up);
    }
}

/// Takes frames, for at most so long, until one is wanted.
fn received(nic: &mut Nic, patience: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
    let (mut into, deadline) = (vec![0; 65536], Instant::now() + patience);
    loop {
        while let Some((len, _)) = nic.recv(&mut into) {
            if wanted(&into[..len]) {
                return true;
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        nic.wait(false, left.min(Duration::from_millis(50))).unwrap();
    }
}

/// This vif is closed with one error in the store, and nothing else is.
fn is_cut_off(world: &mut dyn World, raw: Raw, why: &str) {
    world.is_closed(why);
    honest_guests_talk(world);
    raw.seat.switch(XenbusState::Closed);
    raw.seat.await_back(XenbusState::Closed);
}

struct Threads {
    seat: Seat,
    honest: [Nic; 2],
    machine: Machine,
    _kept: TempDir,
}

/// A machine whose payloads are mapped, or one that keeps response logs and so copies them.
fn in_threads(response_logs: bool) -> Option<Box<dyn World>> {
    let kept = tempfile::tempdir().unwrap();
    let keep = response_logs.then(|| InflightDir::new(kept.path()).unwrap());
    let machine = Machine::with(netback::Config { inflight_dir: keep, ..Default::default() });
    let device = machine.plug(1, 0, &[]);
    let seat = Seat { hv: machine.join(1), device };
    let honest = [20, 21].map(|domid| machine.guest(domid, Config::default()));
    Some(Box::new(Threads { seat, honest, machine, _kept: kept }))
}

impl World for Threads {
    fn seat(&self) -> Seat {
        Seat { hv: Arc::clone(&self.seat.hv), device: self.seat.device.clone() }
    }

    fn honest(&mut self) -> &mut [Nic; 2] {
        &mut self.honest
    }

    fn is_closed(&self, words: &str) {
        self.machine.await_state(&self.seat.device.back_path(), XenbusState::Closing);
        let path = "/local/domain/0/error/backend/vif/1/0/error";
        let text = self.machine.client().read_text(path).unwrap();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        assert!(self.machine.bridge.ports().unwrap().iter().all(|port| port.name != "vif1.0"));
    }

    fn dropped(&self) -> Option<u64> {
        let ports = self.machine.bridge.ports().unwrap();
        let stuck = ports.iter().find(|port| port.name == "vif1.0").unwrap();
        Some(stuck.counters.dropped(bridge::Reason::NoRoom))
    }
}

/// What a bridge was given stays what was checked, whatever the guest does to its pages: the head is private.
#[test]
fn heads_do_not_change_once_they_passed() {
    let machine = Machine::new();
    let (inner, mut outer) = Pair::new(Caps::plain(1500), 64).unwrap();
    machine.bridge.attach("dom0", Box::new(inner)).unwrap();
    let seat = Seat { device: machine.plug(1, 0, &[]), hv: machine.join(1) };
    let mut raw = Raw::connect(seat);
    let (stop, page) = (AtomicBool::new(false), [raw.payload_words()]);
    let (started, mut seen) = (Instant::now(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| attacks::mutate(&page, &stop, 1));
        let mut batch = Batch::new(64);
        while seen < 500 {
            assert!(started.elapsed() < BOUND, "{seen} frames");
            let _ = raw.tx.push(&raw.request(0, 0, 1400, TxFlags::empty()).into());
            raw.kick();
            while let Ok(Some(_)) = raw.tx.pop() {}
            outer.recv(&mut batch).unwrap();
            for frame in batch.frames() {
                assert!(frame.len() >= 14 && frame.head() == frame.clone().head());
            }
            seen += batch.len();
            batch.clear();
        }
        stop.store(true, Relaxed);
    });
}

/// Runs an attack in a world of its own, if this machine can be one.
fn run(world: Option<Box<dyn World>>, attack: fn(&mut dyn World)) {
    match world {
        Some(mut world) => attack(&mut *world),
        None => println!("skipped: not on this machine"),
    }
}

macro_rules! attacks {
    ($($attack:ident)*) => {
        mod local { $(#[test] fn $attack() { super::run(super::in_threads(false), super::attacks::$attack); })* }
        mod response_logs { $(#[test] fn $attack() { super::run(super::in_threads(true), super::attacks::$attack); })* }
        mod xen { $(#[test] fn $attack() { super::run(super::on_xen::world(), super::attacks::$attack); })* }
    };
}

attacks! {
    a_producer_out_of_range_is_a_fault
    twenty_one_slots_are_a_fault
    bytes_past_the_page_are_a_fault
    extras_that_nobody_knows_are_a_fault
    bad_packets_are_answered_and_good_ones_between_them_pass
    headers_split_over_eighteen_slots_of_an_byte_are_put_together
    a_bad_receive_buffer_costs_one_frame
    a_guest_that_takes_nothing_harms_nobody
    a_storm_of_events_disturbs_nobody
    a_guest_that_changes_everything_meanwhile_gains_nothing
}
