//! A network backend by hand, which can write whatever it likes.

use super::until;
use crate::Machine;
use hypervisor::{Access, Channel, Contiguous, DomId, EventPort, GrantRef, Hypervisor};
use netback::handshake::backend_keys;
use netfront::Nic;
use ring_abi::netif::{Rx, RxResponse, Tx};
use ring_abi::ring::Back;
use std::sync::Arc;
use xenbus::{Device, DeviceEnd};
use xenbus::{Keys, XenbusState};
use xenstore::Client;

/// Both rings; others may write their memory too.
pub struct RawBackend {
    /// The ring of what the guest sends.
    pub tx: Back<Tx, Arc<Contiguous>>,
    /// The ring of what the guest receives.
    pub rx: Back<Rx, Arc<Contiguous>>,
    /// The event channel of both rings.
    pub event: Box<dyn Channel>,
    /// The vif.
    pub device: Device,
    /// Dom0's connection to the store.
    pub client: Client,
}

impl RawBackend {
    /// Attaches an interface to a guest and connects both ends; the interface is up then.
    pub fn connect(machine: &Machine, dom0: &dyn Hypervisor, domid: DomId) -> (Nic, RawBackend) {
        let device = machine.attach_vif(domid, 0);
        let (mut client, end) = (machine.client(), DeviceEnd::back(&device));
        let mut keys = backend_keys(true);
        // One channel for both rings.
        keys.set("feature-split-event-channels", 0);
        end.publish(&mut client, &keys, XenbusState::InitWait).unwrap();
        let guest = machine.domain(domid);
        let mut nic = super::open(&guest, 0, netfront::Config::default());
        machine.wait_for_state(&device.front_path(), XenbusState::Connected);
        let front = end.other_keys(&mut client).unwrap();
        let map = |key| {
            let gref = GrantRef(front.need(key).unwrap());
            Arc::new(dom0.map_contiguous(domid, &[gref], Access::ReadWrite).unwrap())
        };
        let tx = Back::attach(map("tx-ring-ref")).unwrap();
        let rx = Back::attach(map("rx-ring-ref")).unwrap();
        let event = dom0.bind_interdomain(domid, EventPort(front.need("event-channel").unwrap())).unwrap();
        end.publish(&mut client, &Keys::default(), XenbusState::Connected).unwrap();
        until(&mut nic, Nic::is_up);
        (nic, RawBackend { tx, rx, event, device, client })
    }

    /// Answers the next buffer of the guest's, by its id.
    pub fn respond(&mut self, response: impl Fn(u16) -> RxResponse) {
        let request = self.rx.pop().unwrap().expect("buffers are posted");
        self.rx.push(&response(request.id).into());
        let _ = self.rx.commit();
        self.event.notify().unwrap();
    }
}
