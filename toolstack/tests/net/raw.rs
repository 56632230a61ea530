//! A front end without manners: rings and keys by hand, so that a test can write whatever it likes.

use crate::machine::Machine;
use hypervisor::local::Domain;
use hypervisor::{Access, Channel, DomId, Hypervisor, Shared};
use netfront::handshake::{Transport, Wishes, keys};
use ring_abi::netif::{Rx, Tx, TxFlags, TxRequest};
use ring_abi::ring::Front;
use std::sync::Arc;
use xenstore::xenbus::{Device, End};
use xenstore::{Client, XenbusState};

/// Rings in its hands, a page of payload, and one posted receive buffer for each of `posted`.
pub(crate) struct Raw {
    pub(crate) device: Device,
    pub(crate) tx: Front<Tx, Shared>,
    pub(crate) rx: Front<Rx, Shared>,
    pub(crate) page: Shared,
    pub(crate) event: Box<dyn Channel>,
    pub(crate) client: Client,
    pub(crate) end: End,
    _domain: Arc<Domain>,
}

impl Raw {
    /// Plugs in a vif and connects to it.
    pub(crate) fn connect(machine: &Machine, domid: u16) -> Self {
        let device = machine.plug(domid, 0, &[]);
        let domain = machine.join(domid);
        let mut client = Client::new(domain.store().unwrap());
        let end = End::front(&device);
        machine.await_state(&device.back_path(), XenbusState::InitWait);
        let share = || domain.share(DomId(0), 1, Access::ReadWrite).unwrap();
        let (tx, rx, page) = (share(), share(), share());
        let event = domain.listen(DomId(0)).unwrap();
        let transport =
            Transport { tx: tx.refs()[0], rx: rx.refs()[0], tx_event: event.port(), rx_event: None };
        let (tx, rx) = (Front::init(tx).unwrap(), Front::init(rx).unwrap());
        let keys = keys(&transport, Wishes { csum: true, gso: true });
        end.publish(&mut client, &keys, XenbusState::Connected).unwrap();
        machine.await_state(&device.back_path(), XenbusState::Connected);
        Self { device, tx, rx, page, event, client, end, _domain: domain }
    }

    /// A request for octets of the page.
    pub(crate) fn request(&self, id: u16, offset: u16, size: u16, flags: TxFlags) -> TxRequest {
        TxRequest { gref: self.page.refs()[0], offset, flags, id, size }
    }

    /// Publishes what was pushed, and rings.
    pub(crate) fn kick(&mut self) {
        let _ = self.tx.commit();
        let _ = self.rx.commit();
        // The other end may have cut us off.
        let _ = self.event.notify();
    }

    /// The status of the next response.
    pub(crate) fn answer(&mut self) -> (u16, i16) {
        let deadline = std::time::Instant::now() + crate::machine::BOUND;
        loop {
            if let Some(response) = self.tx.pop().unwrap() {
                return (response.id, response.status.0);
            }
            assert!(std::time::Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
    }
}
