//! Toy event channels: an event is a flag that the other end reads.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use event_channel::{Channel, Error, EventChannels, Result};
use ring_abi::{DomId, EventPort};
use spin::Mutex;

/// The event channels of all domains, seen from one.
pub(crate) struct Events {
    domid: DomId,
    ports: Arc<Mutex<Vec<Unbound>>>,
}

/// A port to which a peer may bind; its number is its index.
struct Unbound {
    owner: DomId,
    peer: DomId,
    /// Pending events of the owner and of the peer, until the peer has bound.
    pending: Option<[Arc<AtomicBool>; 2]>,
}

/// One end of a channel.
pub(crate) struct End {
    port: EventPort,
    own: Arc<AtomicBool>,
    other: Arc<AtomicBool>,
    masked: AtomicBool,
}

impl End {
    fn new(port: EventPort, own: Arc<AtomicBool>, other: Arc<AtomicBool>) -> Self {
        Self { port, own, other, masked: AtomicBool::new(false) }
    }
}

impl Events {
    pub(crate) fn new(domid: DomId) -> Self {
        Self { domid, ports: Arc::default() }
    }

    /// The same channels, seen from another domain.
    pub(crate) fn of(&self, domid: DomId) -> Self {
        Self { domid, ports: self.ports.clone() }
    }
}

impl EventChannels for Events {
    type Channel = End;

    fn alloc_unbound(&self, peer: DomId) -> Result<End> {
        let own = Arc::<AtomicBool>::default();
        let other = Arc::<AtomicBool>::default();
        let mut ports = self.ports.lock();
        let port = EventPort(ports.len() as u32);
        ports.push(Unbound { owner: self.domid, peer, pending: Some([own.clone(), other.clone()]) });
        Ok(End::new(port, own, other))
    }

    fn bind_interdomain(&self, peer: DomId, port: EventPort) -> Result<End> {
        let mut ports = self.ports.lock();
        let unbound =
            ports.get_mut(port.0 as usize).filter(|port| port.owner == peer && port.peer == self.domid);
        let [other, own] =
            unbound.and_then(|port| port.pending.take()).ok_or(Error::NoSuchPort { peer, port })?;
        own.store(true, Ordering::Release);
        Ok(End::new(port, own, other))
    }
}

impl Channel for End {
    fn port(&self) -> EventPort {
        self.port
    }

    fn notify(&self) -> Result<()> {
        self.other.store(true, Ordering::Release);
        Ok(())
    }

    fn take(&self) -> Result<bool> {
        Ok(!self.masked.load(Ordering::Relaxed) && self.own.swap(false, Ordering::Acquire))
    }

    fn mask(&self) {
        self.masked.store(true, Ordering::Relaxed);
    }

    /// An event that was sent meanwhile is still pending.
    fn unmask(&self) -> Result<bool> {
        self.masked.store(false, Ordering::Relaxed);
        Ok(false)
    }
}
