//! A device that is removed and attached again under the same number while a program still holds the old interface.

use hypervisor::local::Domain;
use netfront::{Config, Error, Nic};
use ring_abi::DomId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::net::{Network, open, until};
use testkit::{BOUND, Machine};
use xenbus::{Device, XenbusState};

const GUEST: DomId = DomId(1);

/// A guest's interface that the toolstack has detached and whose nodes it has removed.
struct Removed {
    nic: Nic,
    device: Device,
    guest: Arc<Domain>,
    _network: Network,
    machine: Machine,
}

impl Removed {
    fn new() -> Removed {
        let machine = Machine::new();
        let network = Network::start(&machine, netback::Config::default());
        let device = machine.attach_vif(GUEST, 0);
        let guest = machine.domain(GUEST);
        let mut nic = open(&guest, 0, Config::default());
        until(&mut nic, Nic::is_up);
        machine.detach(&device);
        until(&mut nic, |nic| !nic.is_up());
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
        machine.remove(&device);
        Removed { nic, device, guest, _network: network, machine }
    }

    /// Attaches an interface with the same number, and waits until its backend waits for a frontend.
    fn attach_another(&self) {
        self.machine.attach_vif(GUEST, 0);
        self.machine.wait_for_state(&self.device.back_path(), XenbusState::InitWait);
    }

    /// Shuts the old interface down, which leaves the other's state alone: the other one connects.
    fn other_connects_after_shutdown(mut self) {
        self.nic.shutdown().unwrap();
        assert_eq!(self.machine.state(&self.device.front_path()), XenbusState::Initialising);
        let mut nic = open(&self.guest, 0, Config::default());
        until(&mut nic, Nic::is_up);
    }
}

/// Processes events until the interface reports that its device was removed.
fn until_removed(nic: &mut Nic) {
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        match nic.wait(false, Duration::from_millis(50)) {
            Ok(()) => assert!(!nic.is_up(), "serves the new device"),
            Err(Error::Removed(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("not removed within {BOUND:?}");
}

#[test]
fn shutdown_after_the_device_was_replaced_leaves_the_new_one_alone() {
    let removed = Removed::new();
    removed.attach_another();
    removed.other_connects_after_shutdown();
}

#[test]
fn shutdown_after_removal_was_reported_leaves_a_new_device_alone() {
    let mut removed = Removed::new();
    until_removed(&mut removed.nic);
    removed.attach_another();
    removed.other_connects_after_shutdown();
}

#[test]
fn device_replaced_between_two_events_is_reported_as_removed() {
    let mut removed = Removed::new();
    removed.attach_another();
    until_removed(&mut removed.nic);
    removed.other_connects_after_shutdown();
}
