//! Hostile frontends: the backend closes the attacker's vif or answers with an error, and serves all others on.
//!
//! The attacks are functions in `hostile/attacks.rs`. Each runs on every [`Platform`]: on the local hypervisor with all
//! domains in threads, and in a guest of a real Xen host, where `hostile xen::ATTACK` attacks the backend in dom0
//! (`tests/xen/run hostile-vif`; built with `--cfg xen_host`).

use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Lock, Port};
use netfront::{Config, Nic, SendOutcome};
use ring_abi::DomId;
use ring_abi::netif::TxFlags;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::{Network, RawFrontend, VifSpec, frame, until, vif};
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::XenbusState;

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/local.rs"]
mod in_threads;
#[path = "hostile/xen.rs"]
mod on_xen;

/// A bridge with the attacker's vif and the vifs of two honest guests.
trait Platform {
    /// The attacker's vif, waiting for its frontend.
    fn attacked(&self) -> FrontendDevice;
    /// The honest guests' open interfaces.
    fn honest(&mut self) -> &mut [Nic; 2];
    /// Asserts that the backend closed the attacker's vif and detached it from the bridge, and reported an error that
    /// contains `words`.
    fn assert_closed(&self, words: &str);
    /// Frames to the attacker that were dropped as its queue was full; `None` on a platform that cannot count them.
    fn dropped(&self) -> Option<u64>;
}

fn open(device: &FrontendDevice) -> Nic {
    let hv = &device.hv;
    Nic::open(hv.clone(), hv.clone(), hv.clone(), device.device.id, Config::default()).unwrap()
}

/// Asserts that a frame from one honest guest reaches the other.
fn assert_honest_served(platform: &mut dyn Platform) {
    let [a, b] = platform.honest();
    let sent = frame(b.mac(), a.mac(), 1000, 5);
    let deadline = Instant::now() + BOUND;
    until_up([a, b]);
    // Broadcast frames of the attacker may fill the queue, so that ours is dropped.
    loop {
        assert!(Instant::now() < deadline, "no frame arrives within {BOUND:?}");
        while a.send(&sent) == SendOutcome::Full {
            assert!(Instant::now() < deadline, "the ring is full for {BOUND:?}");
            a.wait(true, Duration::from_millis(50)).unwrap();
        }
        a.flush();
        if receives(b, Duration::from_millis(500), |frame| frame == sent) {
            return;
        }
    }
}

fn until_up(nics: [&mut Nic; 2]) {
    for nic in nics {
        until(nic, Nic::is_up);
    }
}

/// Receives frames for at most `timeout`; `true` once one is `wanted`.
fn receives(nic: &mut Nic, timeout: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
    let mut into = vec![0; 65536];
    let deadline = Instant::now() + timeout;
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

/// Asserts that only the attacker's vif is closed, with an error that contains `words`, and closes the frontend too.
fn assert_only_attacker_closed(platform: &mut dyn Platform, raw: RawFrontend, words: &str) {
    platform.assert_closed(words);
    assert_honest_served(platform);
    raw.device.switch(XenbusState::Closed);
    raw.device.wait_for_backend(XenbusState::Closed);
}

/// A frame's head is private memory: the guest cannot change it after it was checked.
#[test]
fn head_of_a_frame_does_not_change_when_the_guest_overwrites_its_page() {
    let machine = Machine::new();
    let network = Network::start(&machine, netback::Config::default());
    let (inner, mut outer) = Pair::new(Caps::plain(1500), 64).unwrap();
    network.bridge.attach("dom0", Box::new(inner)).unwrap();
    let device = machine.attach_vif_as(DomId(1), 0, &VifSpec { lock: Some(Lock::Off), ..vif() });
    let mut raw = RawFrontend::connect(FrontendDevice::new(machine.domain(DomId(1)), device));
    let stop = AtomicBool::new(false);
    let page = [raw.page.clone()];
    let started = Instant::now();
    let mut seen = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| attacks::overwrite(&page, &stop, 1));
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

testkit::attacks! {
    variant = response_logs, ignored = "needs a guest of a Xen host: tests/xen/run hostile-vif";
    producer_index_out_of_range_closes_the_vif
    packet_of_twenty_one_slots_closes_the_vif
    request_across_the_page_end_closes_the_vif
    extra_of_an_unknown_type_closes_the_vif
    invalid_packets_are_answered_and_valid_ones_forwarded
    header_split_over_eighteen_slots_is_assembled
    invalid_receive_buffer_loses_one_frame
    guest_that_receives_nothing_delays_no_sender
    event_storm_leaves_other_guests_served
    memory_overwritten_during_reads_leaves_other_guests_served
}
