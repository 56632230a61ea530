//! An interface of a domain that has reached a limit of its hypervisor's: an error, after which it connects all the same.

use event_channel::{EventChannels, WaitChannel};
use hypervisor::local::Domain;
use netfront::{Config, Error, Nic};
use ring_abi::{DomId, EventPort};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use testkit::Machine;
use testkit::net::{Network, until};
use xenbus::XenbusState;

/// A domain's event channels, all of which may be in use.
struct Ports {
    domain: Arc<Domain>,
    in_use: AtomicBool,
}

impl EventChannels for Ports {
    type Channel = Box<dyn WaitChannel>;

    fn alloc_unbound(&self, peer: DomId) -> event_channel::Result<Self::Channel> {
        match self.in_use.load(Relaxed) {
            true => Err(event_channel::Error::NoSpace("event channels")),
            false => self.domain.alloc_unbound(peer),
        }
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> event_channel::Result<Self::Channel> {
        self.domain.bind_interdomain(peer, port)
    }
}

#[test]
fn interface_without_a_free_port_is_an_error_and_connects_once_there_is_one() {
    let machine = Machine::new();
    let _network = Network::start(&machine, Default::default());
    let device = machine.attach_vif(DomId(1), 0);
    machine.wait_for_state(&device.back_path(), XenbusState::InitWait);
    let guest = machine.domain(DomId(1));
    let ports = Arc::new(Ports { domain: guest.clone(), in_use: AtomicBool::new(true) });
    let open = || Nic::open(guest.clone(), ports.clone(), guest.clone(), 0, Config::default());
    let error = open().err().expect("no port");
    assert!(error.to_string().contains("no space left: event channels"), "{error}");
    assert!(matches!(error, Error::Connection(_)));
    assert_eq!(machine.state(&device.front_path()), XenbusState::Initialising);
    ports.in_use.store(false, Relaxed);
    until(&mut open().unwrap(), Nic::is_up);
}
