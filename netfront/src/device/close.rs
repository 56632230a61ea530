// Not a core: does I/O or calls a hypervisor.

//! Closing an interface: both states in order, unless the nodes are a later device's by then.

use super::Nic;
use crate::error::Error;
use std::time::{Duration, Instant};
use xenbus::{LinkEvent, XenbusState};

/// How long a backend may take to disconnect when the interface is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Nic {
    /// Closes the interface: writes Closing and Closed, and frees the connection.
    ///
    /// # Errors
    /// [`Error::Store`] where a state cannot be read or written.
    pub fn close(mut self) -> Result<(), Error> {
        self.shutdown()
    }

    /// Closes the interface as [`Nic::close`] does, for callers that cannot move it. It stays closed.
    ///
    /// # Errors
    /// [`Error::Store`] where a state cannot be read or written.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        let _span = self.span.clone().entered();
        self.failed = true;
        let is_new = self.link.connect_now(&self.event_set) == LinkEvent::Connected;
        let attached = if is_new { self.attach() } else { Ok(()) };
        let written = attached.and_then(|()| self.write_closed());
        self.drop_connection();
        written
    }

    /// Writes Closing and, once the backend has followed, Closed: the backend unmaps the pages in between.
    fn write_closed(&mut self) -> Result<(), Error> {
        use XenbusState::{Closed, Closing, Connected};
        if self.connection.is_some() && self.write_unless_replaced(Closing)? {
            self.await_back(|back| back != Connected)?;
        }
        if self.write_unless_replaced(Closed)? {
            self.await_back(|back| !matches!(back, Connected | Closing))?;
        }
        Ok(())
    }

    /// Writes a state; `false` where the interface's node was removed, even if another device has its path now.
    fn write_unless_replaced(&mut self, state: XenbusState) -> Result<bool, Error> {
        let Some(client) = self.link.client() else { return Ok(false) };
        let Some(written) = self.written else { return Ok(false) };
        let is_written = self.end.switch_state_after(client, written, state)?;
        self.written = is_written.then_some(state);
        Ok(is_written)
    }

    /// Waits until the backend's state is one of those wanted. A backend that has died never follows, so that a
    /// timeout is no error.
    fn await_back(&mut self, wanted: impl Fn(XenbusState) -> bool) -> Result<(), Error> {
        let Some(client) = self.link.client() else { return Ok(()) };
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while !wanted(self.end.other_state(client)?) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("timed out waiting for the backend to disconnect");
                return Ok(());
            }
            client.wait_event(Some(left))?;
        }
        Ok(())
    }
}
