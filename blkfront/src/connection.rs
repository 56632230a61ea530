// Not a core: does I/O or calls a hypervisor.

//! The disk's connection to its backend: made, dropped, and closed, as the handshake says.

use event_channel::{Notifier, Notifiers};
use nix::errno::Errno;
use ring_abi::blkif::key;
use xenbus::Keys;
use xenbus::frontend::{self, FrontDevice, Frontend};

use crate::device::{CHANNEL, Disk};
use crate::error::{Error, Result};
use crate::handshake::{
    BACKEND_KEYS, CONNECTION_KEYS, Negotiated, QueueInfo, frontend_keys, indirect_segments, queue_count,
    ring_page_order,
};
use crate::queue::Fault;

impl FrontDevice for Disk {
    type Error = Error;

    const CONNECTION_KEYS: &[&str] = &CONNECTION_KEYS;
    const BACKEND_KEYS: &[&str] = &BACKEND_KEYS;

    fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Grants new rings and pushes unanswered requests again.
    fn offer(&mut self, back: &Keys) -> Result<Keys> {
        self.disconnected();
        let segments = indirect_segments(back)?;
        self.given_up.extend(self.queues.remove_larger(segments));
        if let Some(negotiated) = &mut self.negotiated {
            negotiated.indirect_segments = segments;
        }
        if self.in_flight() > 0 {
            tracing::info!(in_flight = self.in_flight(), "reconnecting");
        }
        let count = queue_count(back, self.options.queues)?;
        let of_each = self.options.ring_page_order.saturating_sub(count.next_power_of_two().ilog2());
        let order = ring_page_order(back, of_each)?;
        let count = count as usize;
        let rings = self.rings.take(&*self.grants, self.peer, 1 << order, count)?;
        let channels = (0..count).map(|_| self.channels.alloc_unbound(self.peer).map(Notifier::new));
        let mut notifiers = Notifiers::new(channels.collect::<std::result::Result<_, _>>()?);
        notifiers.count_in(&self.stats.events);
        let queues = rings.iter().zip(notifiers.ports());
        let queues: Vec<_> = queues.map(|(ring, port)| QueueInfo { refs: ring.refs(), port }).collect();
        // Buffers are granted for writing, and used again as long as they are.
        let keys = frontend_keys(&queues, back.flag(key::FEATURE_PERSISTENT)?);
        self.queues.connect(rings)?;
        notifiers.register(self.frontend.event_set(), CHANNEL)?;
        self.notifiers = notifiers;
        self.backend_lost = false;
        Ok(keys)
    }

    fn connected(&mut self, back: &Keys) -> Result<()> {
        let negotiated = Negotiated::from_keys(back)?;
        self.negotiated = Some(negotiated);
        tracing::info!(sectors = negotiated.sectors, "connected");
        // Publishes the requests that an earlier backend did not answer.
        self.commit()
    }

    fn changed(&mut self, back: &Keys) -> Result<()> {
        let negotiated = Negotiated::from_keys(back)?;
        if self.negotiated.replace(negotiated) != Some(negotiated) {
            tracing::info!(sectors = negotiated.sectors, "resized");
        }
        Ok(())
    }

    /// Drops rings and channels; requests stay in flight.
    fn disconnected(&mut self) {
        std::mem::take(&mut self.notifiers).unregister(self.frontend.event_set());
        self.rings.give_back(self.queues.disconnect());
    }

    /// Rings and pages stay granted until the disk is dropped, as the backend may still map them.
    fn closed(&mut self) {}

    fn removed(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.in_flight() > 0 && self.queues.is_connected() && !self.backend_lost
    }

    fn is_in_use(&self) -> bool {
        self.in_use
    }

    fn is_backend_lost(&self) -> bool {
        self.backend_lost
    }
}

impl Disk {
    /// Follows the store until it has no more events. A lost connection to it is no error: requests in flight need none,
    /// and the link connects again.
    pub(crate) fn follow_store(&mut self) -> Result<()> {
        let followed = frontend::follow(self);
        self.close_after(followed)
    }

    /// Reads the backend's state, as after an event of it.
    pub(crate) fn follow_backend(&mut self) -> Result<()> {
        let refreshed = frontend::refresh(self);
        self.close_after(refreshed)?;
        // Events that came with the replies.
        self.follow_store()
    }

    /// Closes the disk for good if its backend published an invalid key.
    pub(crate) fn close_after(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error @ Error::Key(_)) = &outcome {
            frontend::fail(self, Errno::EINVAL as i32, error);
        }
        outcome
    }

    /// Closes the device because the backend broke the protocol.
    pub(crate) fn fault(&mut self, fault: Fault) -> Error {
        frontend::fail(self, Errno::EPROTO as i32, &fault);
        fault.into()
    }

    /// The backend's end of the event channel is closed. A successor shows in the store; a disk that closes has none.
    pub(crate) fn lose_backend(&mut self) -> Result<()> {
        self.backend_lost = true;
        self.follow_backend()
    }
}
