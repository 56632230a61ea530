//! A network frontend by hand, which can write whatever it likes.

use crate::{BOUND, FrontendDevice};
use hypervisor::{Access, Channel, DomId, Shared};
use netfront::handshake::{CONNECTION_KEYS, QueueInfo, Requested, frontend_keys};
use ring_abi::netif::{Rx, Tx, TxFlags, TxRequest};
use ring_abi::ring::Front;
use std::sync::Arc;
use std::time::Instant;
use xenbus::XenbusState;

/// Both rings, and a page of payload; others may write their memory too.
pub struct RawFrontend {
    /// The vif.
    pub device: FrontendDevice,
    /// The ring of what the guest sends.
    pub tx: Front<Tx, Arc<Shared>>,
    /// The ring of what the guest receives.
    pub rx: Front<Rx, Arc<Shared>>,
    /// A granted page.
    pub page: Arc<Shared>,
    /// The event channel of both rings.
    pub event: Box<dyn Channel>,
}

impl RawFrontend {
    /// Waits for the backend, and connects.
    pub fn connect(device: FrontendDevice) -> RawFrontend {
        device.wait_for_backend(XenbusState::InitWait);
        let share = || Arc::new(device.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        let (tx, rx, page) = (share(), share(), share());
        let event = device.hv.alloc_unbound(DomId::DOM0).unwrap();
        let queue = QueueInfo {
            tx_ring: tx.refs()[0],
            rx_ring: rx.refs()[0],
            tx_event: event.port(),
            rx_event: None,
        };
        let keys = frontend_keys(&queue, Requested { csum: true, gso: true });
        let tx = Front::init(tx).unwrap();
        let rx = Front::init(rx).unwrap();
        device.end().publish(&mut device.store(), &keys, XenbusState::Connected).unwrap();
        device.wait_for_backend(XenbusState::Connected);
        RawFrontend { device, tx, rx, page, event }
    }

    /// Closes whatever connection a vif has, so that it can be connected again.
    pub fn reset(device: &FrontendDevice) {
        device.close();
        device.end().remove_keys(&mut device.store(), CONNECTION_KEYS).unwrap();
        device.switch(XenbusState::Initialising);
        device.wait_for_backend(XenbusState::InitWait);
    }

    /// The memory of both rings and of the payload.
    pub fn memory(&self) -> [Arc<Shared>; 3] {
        [self.tx.memory().clone(), self.rx.memory().clone(), self.page.clone()]
    }

    /// A request for bytes of the page.
    pub fn request(&self, id: u16, offset: u16, size: u16, flags: TxFlags) -> TxRequest {
        TxRequest { gref: self.page.refs()[0], offset, flags, id, size }
    }

    /// Publishes what was pushed to either ring, and notifies.
    pub fn commit(&mut self) {
        let _ = self.tx.commit();
        let _ = self.rx.commit();
        // The backend may have closed its end.
        let _ = self.event.notify();
    }

    /// Waits for the next response of the ring of what the guest sends: its id and its status.
    pub fn response(&mut self) -> (u16, i16) {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(response) = self.tx.pop().unwrap() {
                return (response.id, response.status.0);
            }
            assert!(Instant::now() < deadline, "no response");
            std::thread::yield_now();
        }
    }
}
