//! One end of an event channel, as a domain holds it.

use super::events::EventPipes;
use super::membership::Membership;
use crate::Error;
use crate::mask::Mask;
use event_channel::{Channel, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use ring_abi::EventPort;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Two pipes and the port number, which is freed on drop.
#[derive(Debug)]
pub(super) struct LocalChannel {
    port: EventPort,
    events: EventPipes,
    /// Has the incoming pipe, and is the descriptor that is polled: a peer can make its pipe readable at any time, but
    /// not this while the end is masked.
    gate: Epoll,
    mask: Mask,
    membership: Arc<Membership>,
}

impl LocalChannel {
    /// Wraps an end whose port the broker has allocated.
    ///
    /// # Errors
    /// [`Error::Io`] if the process has no descriptors left; the port is freed.
    pub(super) fn new(
        port: EventPort,
        events: EventPipes,
        membership: Arc<Membership>,
    ) -> crate::Result<Self> {
        let gate = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let gate = gate.and_then(|gate| gate.add(events.fd(), delivery(true)).map(|()| gate));
        match gate {
            Ok(gate) => Ok(Self { port, events, gate, mask: Mask::default(), membership }),
            Err(error) => {
                membership.close_port(port);
                Err(Error::io("poll an event channel", error))
            }
        }
    }

    fn deliver(&self, enabled: bool) -> crate::Result<()> {
        let changed = self.gate.modify(self.events.fd(), &mut delivery(enabled));
        changed.map_err(|error| Error::io("mask or unmask an event channel", error))
    }
}

/// What the gate reports: events, or only that the peer's end is closed.
fn delivery(enabled: bool) -> EpollEvent {
    let flags = if enabled { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
    EpollEvent::new(flags, 0)
}

impl AsFd for LocalChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gate.0.as_fd()
    }
}

impl Channel for LocalChannel {
    fn port(&self) -> EventPort {
        self.port
    }

    fn notify(&self) -> Result<()> {
        Ok(self.events.notify()?)
    }

    fn take(&self) -> Result<bool> {
        Ok(self.events.take()? && !self.mask.remember())
    }

    fn mask(&self) {
        self.mask.set();
        // Fails only where the pipe is not in the gate. Then more events wake the poller, and none is lost.
        let disabled = self.deliver(false);
        debug_assert!(disabled.is_ok(), "{disabled:?}");
    }

    fn unmask(&self) -> Result<bool> {
        self.deliver(true)?;
        Ok(self.mask.clear())
    }
}

impl Drop for LocalChannel {
    fn drop(&mut self) {
        self.membership.close_port(self.port);
    }
}
