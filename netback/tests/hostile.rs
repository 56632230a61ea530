//! Frontends that lie and race: each is cut off or refused, alone, and everybody else goes on.
//!
//! The attacks are in `attacks.rs`, by name, over a [`Platform`]: threads on the local hypervisor, or a guest of a
//! real Xen host, where `hostile xen::ATTACK` is one attack on its dom0 (`tests/xen/run hostile-vif`), in a
//! build for such a guest (`--cfg xen_host`).

use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Port};
use hypervisor::DomId;
use netfront::{Config, Nic, SendOutcome};
use ring_abi::netif::TxFlags;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::{Network, RawFrontend, frame, until};
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::XenbusState;

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/local.rs"]
mod in_threads;
#[path = "hostile/xen.rs"]
mod on_xen;

/// A bridge, the attacker's vif on it, and those of two guests that do no harm.
trait Platform {
    /// The attacker's vif, waiting for its frontend.
    fn attacked(&self) -> FrontendDevice;
    /// The other guests' interfaces, open.
    fn honest(&mut self) -> &mut [Nic; 2];
    /// The attacker's vif was closed and is off the bridge, with an error of these words.
    fn is_closed(&self, words: &str);
    /// Frames for the attacker that were dropped for want of room, where that can be seen.
    fn dropped(&self) -> Option<u64>;
}

fn open(device: &FrontendDevice) -> Nic {
    Nic::open(device.hv.clone(), device.store(), device.device.id, Config::default()).unwrap()
}

/// The other guests still reach each other.
fn honest_guests_talk(platform: &mut dyn Platform) {
    let [a, b] = platform.honest();
    let sent = frame(b.mac(), a.mac(), 1000, 5);
    let deadline = Instant::now() + BOUND;
    until_up([a, b]);
    // What the attacker sent to everybody may take the room of some.
    loop {
        assert!(Instant::now() < deadline, "no frame comes through");
        while a.send(&sent) == SendOutcome::Full {
            assert!(Instant::now() < deadline, "no room");
            a.wait(true, Duration::from_millis(50)).unwrap();
        }
        a.flush();
        if received(b, Duration::from_millis(500), |frame| frame == sent) {
            return;
        }
    }
}

fn until_up(nics: [&mut Nic; 2]) {
    for nic in nics {
        until(nic, Nic::is_up);
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
fn is_cut_off(platform: &mut dyn Platform, raw: RawFrontend, why: &str) {
    platform.is_closed(why);
    honest_guests_talk(platform);
    raw.device.switch(XenbusState::Closed);
    raw.device.wait_for_backend(XenbusState::Closed);
}

/// What a bridge was given stays what was checked, whatever the guest does to its pages: the head is private.
#[test]
fn heads_do_not_change_once_they_passed() {
    let machine = Machine::new();
    let network = Network::start(&machine, netback::Config::default());
    let (inner, mut outer) = Pair::new(Caps::plain(1500), 64).unwrap();
    network.bridge.attach("dom0", Box::new(inner)).unwrap();
    let device = machine.attach_vif(DomId(1), 0);
    let mut raw = RawFrontend::connect(FrontendDevice::new(machine.domain(DomId(1)), device));
    let (stop, page) = (AtomicBool::new(false), [raw.page.clone()]);
    let (started, mut seen) = (Instant::now(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| attacks::mutate(&page, &stop, 1));
        let mut batch = Batch::new(64);
        while seen < 500 {
            assert!(started.elapsed() < BOUND, "{seen} frames");
            let _ = raw.tx.push(&raw.request(0, 0, 1400, TxFlags::empty()).into());
            raw.commit();
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

macro_rules! attacks {
    ($($attack:ident)*) => {
        mod local { $(
            #[test]
            fn $attack() { crate::attacks::$attack(&mut *crate::in_threads::platform(false)); }
        )* }
        mod response_logs { $(
            #[test]
            fn $attack() { crate::attacks::$attack(&mut *crate::in_threads::platform(true)); }
        )* }
        mod xen { $(
            #[test]
            #[cfg_attr(not(xen_host), ignore = "needs a guest of a Xen host: tests/xen/run hostile-vif")]
            fn $attack() { crate::attacks::$attack(&mut *crate::on_xen::platform()); }
        )* }
    };
}

attacks! {
    a_producer_out_of_range_is_a_fault
    twenty_one_slots_are_a_fault
    bytes_past_the_page_are_a_fault
    extras_that_nobody_knows_are_a_fault
    bad_packets_are_answered_and_good_ones_between_them_pass
    headers_split_over_eighteen_slots_of_a_byte_are_put_together
    a_bad_receive_buffer_costs_one_frame
    a_guest_that_takes_nothing_harms_nobody
    a_storm_of_events_disturbs_nobody
    a_guest_that_changes_everything_meanwhile_gains_nothing
}
