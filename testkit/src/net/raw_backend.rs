//! A network backend whose rings and keys the test writes: it can break the protocol, which netback cannot.

use super::until;
use crate::Machine;
use event_channel::Channel;
use grant_table::{Access, Contiguous};
use hypervisor::Hypervisor;
use hypervisor::local::Domain;
use netback::handshake::{Offered, backend_keys};
use netfront::Nic;
use ring_abi::netif::{Rx, RxResponse, Tx, key};
use ring_abi::ring::Back;
use ring_abi::{DomId, EventPort, GrantRef};
use std::sync::Arc;
use xenbus::{Device, DeviceEnd, Keys, XenbusState};
use xenstore::Client;

/// A connected backend of one interface. Other threads may write the rings' memory too.
pub struct RawBackend {
    /// The transmit ring, of frames from the guest.
    pub tx: Back<Tx, Arc<Contiguous>>,
    /// The receive ring, of frames to the guest.
    pub rx: Back<Rx, Arc<Contiguous>>,
    /// The event channel of both rings.
    pub event: Box<dyn Channel>,
    /// The interface's device.
    pub device: Device,
    /// Dom0's connection to the store.
    pub client: Client,
    /// The guest's domain.
    pub guest: Arc<Domain>,
}

impl RawBackend {
    /// Attaches an interface to a guest, connects both ends, and waits until the interface is up.
    pub fn connect(machine: &Machine, dom0: &dyn Hypervisor, domid: DomId) -> (Nic, RawBackend) {
        Self::connect_as(machine, dom0, domid, netfront::Config::default())
    }

    /// Connects as [`RawBackend::connect`] does, to an interface with this configuration.
    pub fn connect_as(
        machine: &Machine,
        dom0: &dyn Hypervisor,
        domid: DomId,
        config: netfront::Config,
    ) -> (Nic, RawBackend) {
        let device = machine.attach_vif(domid, 0);
        let mut client = machine.client();
        let end = DeviceEnd::back(&device);
        let offered = Offered { gso: true, split: false, flip: true };
        end.publish(&mut client, &backend_keys(offered), XenbusState::InitWait).unwrap();
        let guest = machine.domain(domid);
        let mut nic = super::open(&guest, 0, config);
        machine.wait_for_state(&device.front_path(), XenbusState::Connected);
        let front = end.other_keys(&mut client).unwrap();
        let map = |key| {
            let gref = GrantRef(front.need(key).unwrap());
            Arc::new(dom0.map_contiguous(domid, &[gref], Access::ReadWrite).unwrap())
        };
        let tx = Back::attach(map(key::TX_RING_REF)).unwrap();
        let rx = Back::attach(map(key::RX_RING_REF)).unwrap();
        let event = dom0.bind_interdomain(domid, EventPort(front.need(key::EVENT_CHANNEL).unwrap())).unwrap();
        end.publish(&mut client, &Keys::default(), XenbusState::Connected).unwrap();
        until(&mut nic, Nic::is_up);
        (nic, RawBackend { tx, rx, event, device, client, guest })
    }

    /// Takes the guest's next receive buffer and pushes the response that `response` makes for its id.
    pub fn respond(&mut self, response: impl Fn(u16) -> RxResponse) {
        let request = self.rx.pop().unwrap().expect("the guest has posted buffers");
        self.rx.push(&response(request.id).into());
        let _ = self.rx.commit();
        self.event.notify().unwrap();
    }
}
