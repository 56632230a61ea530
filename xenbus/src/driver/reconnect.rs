// Not a core: does I/O or calls a hypervisor.

//! A backend's connection to the store, made again after the store was killed and has a successor.
//!
//! Devices are served meanwhile: rings and event channels need no store. The first event of each watch has what it watches
//! read again.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::control::{Control, STORE};
use super::target::{BACKEND_TOKEN, frontend_token};
use xenstore::{Client, Error};

/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(20);

/// Whether a store may come: none is there yet, or the new one is lost too.
fn is_away(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

impl Control<'_> {
    /// Connects to the store again; `false` if the loop is to stop instead.
    pub(super) fn reconnect(&mut self, lost: &Error) -> Result<bool, Error> {
        tracing::warn!(error = %lost, "lost the connection to the store; reconnecting");
        self.event_set.remove(self.client.fd());
        loop {
            match self.try_reconnect() {
                Ok(()) => {
                    tracing::info!("connected to the store again");
                    return Ok(true);
                }
                Err(Error::Io(error)) if is_away(error.kind()) => {}
                // The new one is lost too.
                Err(Error::Closed) => {}
                Err(error) => return Err(error),
            }
            if self.wait(Some(Instant::now() + RETRY))? {
                return Ok(false);
            }
        }
    }

    fn try_reconnect(&mut self) -> Result<(), Error> {
        let Some(store) = self.store else { return Err(Error::Closed) };
        let mut client = Client::connect(store)?;
        client.watch(&self.root, BACKEND_TOKEN)?;
        for (id, entry) in &self.devices {
            entry.end.watch_other(&mut client, &frontend_token(*id))?;
        }
        self.event_set.add(client.fd(), STORE)?;
        self.client = client;
        Ok(())
    }
}
