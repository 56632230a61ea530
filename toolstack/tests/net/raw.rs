//! A frontend without manners: rings and keys by hand, so that a test can write whatever it likes; over any
//! hypervisor.

use crate::machine::BOUND;
use hypervisor::{Access, Channel, DomId, Hypervisor, Shared};
use netfront::handshake::{TRANSPORT_KEYS, Transport, Wishes, keys};
use ring_abi::netif::{Rx, Tx, TxFlags, TxRequest};
use ring_abi::ring::Front;
use std::sync::Arc;
use std::time::Instant;
use xenstore::xenbus::{Device, DeviceEnd};
use xenstore::{Client, XenbusState};

/// A vif, seen from its frontend's domain, with that domain's rights.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) hv: Arc<dyn Hypervisor>,
    pub(crate) device: Device,
}

impl Seat {
    pub(crate) fn store(&self) -> Client {
        Client::new(self.hv.store().unwrap())
    }

    fn end(&self) -> DeviceEnd {
        DeviceEnd::front(&self.device)
    }

    pub(crate) fn switch(&self, state: XenbusState) {
        self.end().switch_state(&mut self.store(), state).unwrap();
    }

    fn back(&self, store: &mut Client) -> XenbusState {
        self.end().other_state(store).unwrap()
    }

    /// Waits for the backend's state.
    pub(crate) fn await_back(&self, state: XenbusState) {
        let mut store = self.store();
        store.watch(&format!("{}/state", self.device.back_path()), "state").unwrap();
        let deadline = Instant::now() + BOUND;
        while self.back(&mut store) != state {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {} {state}", self.device.back_path());
            let _ = store.wait_event(Some(left)).unwrap();
        }
    }

    /// Lets go of whatever rings there were, and begins anew.
    pub(crate) fn start_again(&self) {
        if ![XenbusState::InitWait, XenbusState::Closed].contains(&self.back(&mut self.store())) {
            self.switch(XenbusState::Closed);
            self.await_back(XenbusState::Closed);
        }
        self.end().remove_keys(&mut self.store(), TRANSPORT_KEYS).unwrap();
        self.switch(XenbusState::Initialising);
        self.await_back(XenbusState::InitWait);
    }
}

/// Rings in its hands, and a page of payload.
pub(crate) struct Raw {
    pub(crate) seat: Seat,
    pub(crate) tx: Front<Tx, Shared>,
    pub(crate) rx: Front<Rx, Shared>,
    pub(crate) page: Shared,
    pub(crate) event: Box<dyn Channel>,
}

impl Raw {
    /// Connects.
    pub(crate) fn connect(seat: Seat) -> Self {
        seat.await_back(XenbusState::InitWait);
        let share = || seat.hv.share(DomId(0), 1, Access::ReadWrite).unwrap();
        let (tx, rx, page) = (share(), share(), share());
        let event = seat.hv.alloc_unbound(DomId(0)).unwrap();
        let transport =
            Transport { tx: tx.refs()[0], rx: rx.refs()[0], tx_event: event.port(), rx_event: None };
        let (tx, rx) = (Front::init(tx).unwrap(), Front::init(rx).unwrap());
        let keys = keys(&transport, Wishes { csum: true, gso: true });
        seat.end().publish(&mut seat.store(), &keys, XenbusState::Connected).unwrap();
        seat.await_back(XenbusState::Connected);
        Self { seat, tx, rx, page, event }
    }

    /// A request for bytes of the page.
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
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(response) = self.tx.pop().unwrap() {
                return (response.id, response.status.0);
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
    }
}
