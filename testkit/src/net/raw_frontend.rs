//! A network frontend whose rings the test writes: it can break the protocol, which netfront cannot.

use crate::{BOUND, FrontendDevice};
use event_channel::Channel;
use grant_table::{Access, Shared};
use netfront::handshake::{CONNECTION_KEYS, QueueInfo, Requested, frontend_keys};
use ring_abi::DomId;
use ring_abi::netif::{Rx, Tx, TxFlags, TxRequest};
use ring_abi::ring::Front;
use std::sync::Arc;
use std::time::Instant;
use xenbus::{Change, Expected, Keys, XenbusState};

/// A connected frontend with a page of payload. Other threads may write the memory of ring and payload too.
pub struct RawFrontend {
    /// The interface's device.
    pub device: FrontendDevice,
    /// The transmit ring, of frames from the guest.
    pub tx: Front<Tx, Arc<Shared>>,
    /// The receive ring, of frames to the guest.
    pub rx: Front<Rx, Arc<Shared>>,
    /// The granted page of payload.
    pub page: Arc<Shared>,
    /// The event channel of both rings.
    pub event: Box<dyn Channel>,
}

impl RawFrontend {
    /// Waits for the backend, and connects. Receive requests are to grant pages.
    pub fn connect(device: FrontendDevice) -> RawFrontend {
        Self::connect_as(device, false)
    }

    /// Connects as [`RawFrontend::connect`] does; with `flip`, receive requests are to accept pages.
    pub fn connect_as(device: FrontendDevice, flip: bool) -> RawFrontend {
        let (raw, keys) = Self::prepare(device, flip);
        raw.publish(&keys);
        raw.device.wait_for_backend(XenbusState::Connected);
        raw
    }

    /// Waits for the backend, and makes the rings and the keys of a frontend that it has not heard of yet.
    pub fn prepare(device: FrontendDevice, flip: bool) -> (RawFrontend, Keys) {
        device.wait_for_backend(XenbusState::InitWait);
        let share = || Arc::new(device.hv.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        let tx = share();
        let rx = share();
        let page = share();
        let event = device.hv.alloc_unbound(DomId::DOM0).unwrap();
        let queue = QueueInfo {
            tx_ring: tx.refs()[0],
            rx_ring: rx.refs()[0],
            tx_event: event.port(),
            rx_event: None,
        };
        let keys = frontend_keys(&queue, Requested { csum: true, gso: true, flip });
        let tx = Front::init(tx).unwrap();
        let rx = Front::init(rx).unwrap();
        (RawFrontend { device, tx, rx, page, event }, keys)
    }

    /// Tells the backend of the rings by these keys.
    pub fn publish(&self, keys: &Keys) {
        let mut store = self.device.store();
        self.device.end().publish(&mut store, keys, XenbusState::Connected).unwrap();
    }

    /// Closes the interface's connection, if any, and waits until the backend accepts another.
    pub fn reset(device: &FrontendDevice) {
        device.close();
        let own = device.end().state(&mut device.store()).unwrap();
        let expected = Expected { own, ..Expected::default() };
        let change = Change {
            state: XenbusState::Initialising,
            rewrite: false,
            keys: &Keys::default(),
            removed: &CONNECTION_KEYS,
            error: None,
        };
        assert!(device.end().change(&mut device.store(), &expected, &change).unwrap());
        device.wait_for_backend(XenbusState::InitWait);
    }

    /// The memory of both rings and of the payload.
    pub fn memory(&self) -> [Arc<Shared>; 3] {
        [self.tx.memory().clone(), self.rx.memory().clone(), self.page.clone()]
    }

    /// Makes a transmit request for bytes of the page.
    pub fn request(&self, id: u16, offset: u16, size: u16, flags: TxFlags) -> TxRequest {
        TxRequest { gref: self.page.refs()[0], offset, flags, id, size }
    }

    /// Publishes the requests pushed to either ring, and notifies the backend.
    pub fn commit(&mut self) {
        let _ = self.tx.commit();
        let _ = self.rx.commit();
        // Fails if the backend has closed the channel.
        let _ = self.event.notify();
    }

    /// Waits for the transmit ring's next response and returns its id and status.
    pub fn response(&mut self) -> (u16, i16) {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(response) = self.tx.pop().unwrap() {
                return (response.id, response.status.0);
            }
            assert!(Instant::now() < deadline, "no response within {BOUND:?}");
            std::thread::yield_now();
        }
    }
}
