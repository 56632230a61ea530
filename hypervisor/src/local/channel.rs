//! One end of an event channel, as a domain holds it.

use super::events::EventPipes;
use super::session::Session;
use super::wire::Request;
use event_channel::{Channel, Result};
use ring_abi::EventPort;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Two pipes and the port number, which is freed on drop.
#[derive(Debug)]
pub(super) struct LocalChannel {
    pub(super) port: EventPort,
    pub(super) events: EventPipes,
    pub(super) session: Arc<Session>,
}

impl AsFd for LocalChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
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
        Ok(self.events.take()?)
    }
}

impl Drop for LocalChannel {
    fn drop(&mut self) {
        // Fails where the broker has exited: then no one allocates ports any more.
        let _ = self.session.send(&Request::Close(self.port));
    }
}
