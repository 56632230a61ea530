//! A guest's address: what `lock` of a vif lets its guest send, and when it takes effect.

use bridge::{Batch, Caps, DropReason, Frame, Lock, Port, port::pair::Pair};
use ring_abi::DomId;
use ring_abi::netif::{TxFlags, key};
use std::time::Instant;
use testkit::net::{Network, RawFrontend, VifSpec, frame, vif};
use testkit::{BOUND, FrontendDevice, Machine};
use xenbus::{DeviceEnd, XenbusState};
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
        self.connect_as(&VifSpec { lock, ..vif() })
    }

    fn connect_as(&self, spec: &VifSpec) -> RawFrontend {
        let device = self.machine.attach_vif_as(DomId(1), 0, spec);
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
        self.dropped(DropReason::Lock)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let ports = self.network.bridge.ports().unwrap();
        let vif = ports.iter().find(|port| port.name == "vif1.0").unwrap();
        vif.counters.dropped(reason)
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

/// Sends an ARP announcement of that address.
fn announce(raw: &mut RawFrontend, ip: [u8; 4]) {
    push_announcement(raw, ip);
    raw.commit();
    raw.response();
}

fn push_announcement(raw: &mut RawFrontend, ip: [u8; 4]) {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own(), &ip, &[0; 6], &ip, &[0; 18]].concat();
    let bytes = [&[255; 6][..], &own(), &[8, 6], &arp].concat();
    raw.page.slice(0, 60).unwrap().copy_from(&bytes);
    assert!(raw.tx.push(&raw.request(0, 0, 60, TxFlags::empty()).into()));
}

/// The address that the next frame announces.
fn announced(bridged: &mut Bridged) -> [u8; 4] {
    *bridged.next().head()[28..].first_chunk().unwrap()
}

#[test]
fn vif_with_addresses_announces_these_alone_from_its_first_frame_on() {
    let mut bridged = Bridged::new();
    let device =
        bridged.machine.attach_vif_as(DomId(1), 0, &VifSpec { ip: "10.0.0.5".parse().unwrap(), ..vif() });
    let front = FrontendDevice::new(bridged.machine.domain(DomId(1)), device);
    let (mut raw, keys) = RawFrontend::prepare(front, false);
    push_announcement(&mut raw, [10, 0, 0, 1]);
    raw.commit();
    raw.publish(&keys);
    raw.response();
    announce(&mut raw, [10, 0, 0, 5]);
    assert_eq!(announced(&mut bridged), [10, 0, 0, 5]);
    assert_eq!(bridged.dropped(DropReason::LockArp), 1);
}

#[test]
fn addresses_are_changed_live_and_bad_ones_change_nothing() {
    let mut bridged = Bridged::new();
    let mut raw = bridged.connect_as(&VifSpec { ip: "10.0.0.5".parse().unwrap(), ..vif() });
    let path = format!("{}/ip", raw.device.device.back_path());
    let mut store = bridged.machine.client();
    store.write(&path, b"10.0.0.5/33").unwrap();
    store.write(&path, b"10.0.0.5 10.9.0.0/16").unwrap();
    let deadline = Instant::now() + BOUND;
    let passed = |bridged: &Bridged| bridged.network.bridge.ports().unwrap()[0].counters.tx_frames;
    while passed(&bridged) == 0 {
        assert!(Instant::now() < deadline, "the addresses are not changed within {BOUND:?}");
        announce(&mut raw, [10, 9, 0, 1]);
    }
    assert_eq!(announced(&mut bridged), [10, 9, 0, 1]);
    // Without addresses the default of a bridge holds.
    store.rm(&path).unwrap();
    loop {
        assert!(Instant::now() < deadline, "the lock is not changed within {BOUND:?}");
        announce(&mut raw, [10, 0, 0, 7]);
        announce(&mut raw, [10, 9, 0, 1]);
        if announced(&mut bridged) == [10, 0, 0, 7] {
            return;
        }
    }
}

#[test]
fn vif_whose_addresses_cannot_be_read_is_not_connected() {
    let bridged = Bridged::new();
    let machine = &bridged.machine;
    let device = machine.attach_vif_with(DomId(1), 0, &vif(), key::IP, "10.0.0.5/33");
    // It is Closed once the frontend is, too.
    machine.wait_for("the backend closes", |client| {
        let state = DeviceEnd::back(&device).state(client).unwrap();
        matches!(state, XenbusState::Closing | XenbusState::Closed)
    });
    let error = machine.backend_error(&device).unwrap();
    assert!(error.contains("10.0.0.5/33") && error.contains("expected addresses or prefixes"), "{error}");
}

/// Dom0's port takes all VLANs with tags.
#[test]
fn vif_is_in_the_vlan_of_its_key_from_its_first_frame_on_and_live() {
    let mut bridged = Bridged::new();
    let mut raw = bridged.connect_as(&VifSpec { vlan: Some("10".parse().unwrap()), ..vif() });
    announce(&mut raw, [10, 0, 0, 5]);
    assert_eq!(bridged.next().head()[12..18], [0x81, 0, 0, 10, 8, 6]);
    let path = format!("{}/vlan", raw.device.device.back_path());
    let mut store = bridged.machine.client();
    store.write(&path, b"4095").unwrap();
    store.write(&path, b"20").unwrap();
    let deadline = Instant::now() + BOUND;
    let mut vlan = 10;
    while vlan != 20 {
        assert!(Instant::now() < deadline, "the VLAN is not changed within {BOUND:?}");
        announce(&mut raw, [10, 0, 0, 5]);
        vlan = bridged.next().head()[15];
    }
    store.rm(&path).unwrap();
    loop {
        assert!(Instant::now() < deadline, "the VLAN is not left within {BOUND:?}");
        announce(&mut raw, [10, 0, 0, 5]);
        if bridged.next().head()[12..14] == [8, 6] {
            return;
        }
    }
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
