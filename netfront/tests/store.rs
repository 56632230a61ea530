//! An interface whose connection to the store is lost: frames flow, and what happened meanwhile is noticed once the store
//! is connected again.

use netfront::{Config, Error, Nic};
use ring_abi::DomId;
use ring_abi::netif::{Mac, key};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::net::{self, Network, frame, receive, send, until};
use testkit::{BOUND, LossyStore, Machine};
use xenbus::{Device, XenbusState};
use xenstore::Nodes;

/// Two guests on a bridge, the first of which may lose its store. Fields are dropped in this order.
struct Setup {
    nic: Nic,
    other: Nic,
    store: Arc<LossyStore>,
    device: Device,
    network: Network,
    machine: Machine,
}

fn setup() -> Setup {
    let machine = Machine::new();
    let network = Network::start(&machine, Default::default());
    let other = net::guest(&machine, DomId(2), Config::default());
    let device = machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    let store = LossyStore::new(guest.clone());
    let mut nic = Nic::open(guest.clone(), guest, store.clone(), 0, Config::default()).unwrap();
    until(&mut nic, Nic::is_up);
    Setup { nic, other, store, device, network, machine }
}

impl Setup {
    /// The transmit ring's grant reference.
    fn ring(&self) -> Vec<u8> {
        self.machine.client().read(&format!("{}/{}", self.device.front_path(), key::TX_RING_REF)).unwrap()
    }

    fn assert_frames_flow(&mut self) {
        for seed in 0..50 {
            assert_arrives(&mut self.nic, &mut self.other, seed);
            assert_arrives(&mut self.other, &mut self.nic, seed);
        }
    }
}

fn assert_arrives(from: &mut Nic, to: &mut Nic, seed: u8) {
    let sent = frame(to.mac(), from.mac(), 200, seed);
    send(from, &sent);
    from.flush();
    let mut into = vec![0; 2048];
    let (len, _) = receive(to, &mut into);
    assert!(into[..len] == sent);
}

#[test]
fn frames_flow_while_the_store_is_lost_and_over_the_same_rings_afterwards() {
    let mut setup = setup();
    let ring = setup.ring();
    setup.store.cut();
    setup.assert_frames_flow();
    assert!(setup.nic.is_up());
    setup.store.accept();
    let store = setup.store.clone();
    until(&mut setup.nic, |_| store.is_connected());
    setup.assert_frames_flow();
    assert_eq!(setup.ring(), ring);
    // Both states are watched again.
    setup.machine.detach(&setup.device);
    until(&mut setup.nic, |nic| !nic.is_up());
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::Closed);
}

#[test]
fn backend_restarted_while_the_store_is_lost_is_connected_afterwards() {
    let mut setup = setup();
    setup.store.cut();
    setup.network.restart_backend(Default::default());
    // Waits for the frontend, whose rings another process has served.
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::Closing);
    setup.store.accept();
    let device_of_other = Device::new("vif", DomId(2), 0);
    let is_connected = |device: &Device| setup.machine.state(&device.back_path()) == XenbusState::Connected;
    let started = Instant::now();
    while !is_connected(&setup.device) || !is_connected(&device_of_other) {
        assert!(started.elapsed() < BOUND, "not connected within {BOUND:?}");
        setup.nic.wait(false, Duration::from_millis(10)).unwrap();
        setup.other.wait(false, Duration::from_millis(10)).unwrap();
    }
    setup.assert_frames_flow();
}

#[test]
fn interface_removed_while_the_store_is_lost_is_reported_afterwards() {
    let mut setup = setup();
    setup.store.cut();
    setup.machine.detach(&setup.device);
    setup.machine.remove(&setup.device);
    setup.store.accept();
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < BOUND, "not reported within {BOUND:?}");
        if let Err(error) = setup.nic.wait(false, Duration::from_millis(50)) {
            break error;
        }
    };
    assert!(matches!(error, Error::Removed(_)), "{error}");
}

#[test]
fn interface_is_closed_by_its_handshake_though_the_store_was_lost() {
    let mut setup = setup();
    setup.store.cut();
    setup.store.accept();
    setup.nic.shutdown().unwrap();
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Closed);
}

/// The new interface may have another address, bridge and backend than the one that was opened.
#[test]
fn interface_replaced_while_the_store_is_lost_is_reported_afterwards() {
    let mut setup = setup();
    setup.store.cut();
    setup.machine.detach(&setup.device);
    setup.machine.remove(&setup.device);
    let other = net::VifSpec { mac: Some(Mac([0, 0x16, 0x3e, 9, 9, 9])), ..net::vif() };
    setup.machine.attach_vif_as(DomId(1), 0, &other);
    setup.machine.wait_for_state(&setup.device.back_path(), XenbusState::InitWait);
    setup.store.accept();
    let started = Instant::now();
    let error = loop {
        assert!(started.elapsed() < BOUND, "not reported within {BOUND:?}");
        if let Err(error) = setup.nic.wait(false, Duration::from_millis(50)) {
            break error;
        }
    };
    assert!(matches!(error, Error::Removed(_)), "{error}");
    // It is left to whoever opens it.
    assert_eq!(setup.machine.state(&setup.device.front_path()), XenbusState::Initialising);
}
