//! A guest's address: what `lock` of a vif lets its guest send, and when it takes effect.

use bridge::{Batch, Caps, DropReason, Frame, Lock, Port, port::pair::Pair};
use ring_abi::DomId;
use ring_abi::netif::TxFlags;
use std::time::Instant;
use testkit::net::{Network, RawFrontend, VifSpec, frame, vif};
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::XenbusState;
use xenstore::Nodes;

/// A machine whose bridge has a port of dom0 beside the vif of domain 1.
struct Bridged {
    // Dropped before the store.
    network: Network,
    dom0: Pair,
    machine: Machine,
}

impl Bridged {
    fn new() -> Bridged {
        let machine = Machine::new();
        let network = Network::start(&machine, netback::Config::default());
        let (inner, dom0) = Pair::new(Caps::plain(1500), 64).unwrap();
        network.bridge.attach("dom0", Box::new(inner)).unwrap();
        Bridged { network, dom0, machine }
    }

    fn connect(&self, lock: Option<Lock>) -> RawFrontend {
        let device = self.machine.attach_vif_as(DomId(1), 0, &VifSpec { lock, ..vif() });
        RawFrontend::connect(FrontendDevice::new(self.machine.domain(DomId(1)), device))
    }

    /// The next frame that reaches dom0.
    fn next(&mut self) -> Frame {
        let deadline = Instant::now() + BOUND;
        let mut batch = Batch::new(1);
        while batch.is_empty() {
            assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
            self.dom0.recv(&mut batch).unwrap();
        }
        batch.frames()[0].clone()
    }

    fn locked(&self) -> u64 {
        let ports = self.network.bridge.ports().unwrap();
        let vif = ports.iter().find(|port| port.name == "vif1.0").unwrap();
        vif.counters.dropped(DropReason::Lock)
    }
}

const SPOOFED: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The guest's address, as testkit chooses it.
const fn own() -> [u8; 6] {
    [0, 0x16, 0x3e, 0, 1, 0]
}

/// Sends a frame of 60 bytes from that address.
fn send(raw: &mut RawFrontend, from: [u8; 6], note: u8) {
    push(raw, from, note);
    raw.commit();
    raw.response();
}

fn push(raw: &mut RawFrontend, from: [u8; 6], note: u8) {
    raw.page.slice(0, 60).unwrap().copy_from(&frame([255; 6], from, 60, note));
    assert!(raw.tx.push(&raw.request(0, 0, 60, TxFlags::empty()).into()));
}

/// The frame is in the ring when the backend first hears of that.
#[test]
fn spoofed_frame_that_is_a_vifs_first_is_dropped() {
    let mut bridged = Bridged::new();
    let device = bridged.machine.attach_vif(DomId(1), 0);
    let front = FrontendDevice::new(bridged.machine.domain(DomId(1)), device);
    let (mut raw, keys) = RawFrontend::prepare(front, false);
    push(&mut raw, SPOOFED, 1);
    raw.commit();
    raw.publish(&keys);
    raw.response();
    send(&mut raw, own(), 2);
    assert_eq!(bridged.next().to_vec(), frame([255; 6], own(), 60, 2));
    assert_eq!(bridged.locked(), 1);
}

#[test]
fn lock_of_a_vif_is_its_keys_and_is_changed_live() {
    let mut bridged = Bridged::new();
    let mut raw = bridged.connect(Some(Lock::Off));
    send(&mut raw, SPOOFED, 1);
    assert_eq!(bridged.next().to_vec(), frame([255; 6], SPOOFED, 60, 1));
    let path = format!("{}/lock", raw.device.device.back_path());
    let mut store = bridged.machine.client();
    let deadline = Instant::now() + BOUND;
    // A value that says nothing changes nothing; the next one does.
    store.write(&path, b"on").unwrap();
    store.write(&path, b"mac").unwrap();
    let mut note = 2;
    while bridged.locked() == 0 {
        assert!(Instant::now() < deadline, "the lock is not changed within {BOUND:?}");
        send(&mut raw, SPOOFED, note);
        note = note % 200 + 1;
    }
    store.rm(&path).unwrap();
    send(&mut raw, own(), 201);
    while bridged.next().head()[6..12] != own() {}
}

#[test]
fn vif_without_an_address_to_lock_to_is_not_connected() {
    let bridged = Bridged::new();
    let device = bridged.machine.attach_vif_as(DomId(1), 0, &vif());
    bridged.machine.client().rm(&format!("{}/mac", device.back_path())).unwrap();
    let front = FrontendDevice::new(bridged.machine.domain(DomId(1)), device.clone());
    let (raw, keys) = RawFrontend::prepare(front, false);
    raw.publish(&keys);
    bridged.machine.wait_for_state(&device.back_path(), XenbusState::Closing);
    let error = bridged.machine.backend_error(&device).unwrap();
    assert!(error.contains("mac") && error.contains("expected the address of one interface"), "{error}");
}
