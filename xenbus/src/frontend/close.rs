// Not a core: does I/O or calls a hypervisor.

//! Closing a device: after the backend, after a failure, or by its user.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::follow::try_attach;
use super::store::{CLOSED, CLOSING, read, survive};
use super::{FrontDevice, Frontend};
use crate::XenbusState;
use crate::device_end::Change;
use crate::store_link::LinkEvent;
use xenstore::Error;

/// Starts over because the rings have failed by no act of the protocol's: the backend's domain or event channel is gone, for
/// instance.
pub fn reconnect<D: FrontDevice>(device: &mut D) {
    let _span = device.frontend().span_to_enter().entered();
    let frontend = device.frontend();
    match frontend.write(None, &Change { removed: D::CONNECTION_KEYS, ..CLOSED }) {
        Ok(_) => frontend.handshake.restart(frontend.written),
        Err(error) => {
            tracing::debug!(%error, "failed to write the state");
            frontend.handshake.restart(XenbusState::Closed);
        }
    }
    device.disconnected();
}

/// Closes for good because of an error, which is reported in the store.
pub fn fail<D: FrontDevice>(device: &mut D, errno: i32, error: &dyn Display) {
    let _span = device.frontend().span_to_enter().entered();
    let frontend = device.frontend();
    frontend.handshake.close();
    let text = error.to_string();
    let change = Change { removed: D::CONNECTION_KEYS, error: Some((errno, &text)), ..CLOSED };
    if let Err(error) = frontend.write(None, &change) {
        tracing::debug!(%error, "failed to write the state");
    }
    device.disconnected();
}

/// Closes for good, by Closing and Closed, each once the backend has followed, within `timeout` each; then drops the rings.
///
/// # Errors
/// Those of the store.
pub fn close<D: FrontDevice>(device: &mut D, timeout: Duration) -> Result<(), D::Error> {
    let frontend = device.frontend();
    let _span = frontend.span_to_enter().entered();
    if frontend.link.connect_now(&frontend.event_set) == LinkEvent::Connected {
        let attached = try_attach(device);
        survive(device, attached)?;
    }
    let frontend = device.frontend();
    frontend.handshake.close();
    let closed = write_closed(frontend, D::CONNECTION_KEYS, timeout);
    device.disconnected();
    Ok(closed?)
}

fn write_closed(frontend: &mut Frontend, keys: &[&str], timeout: Duration) -> Result<(), Error> {
    use XenbusState::{Closing, Connected, Initialised};
    if matches!(frontend.written, Initialised | Connected) {
        if !insist(frontend, &CLOSING)? {
            return Ok(());
        }
        await_back(frontend, timeout, |back| !matches!(back, Connected | Initialised))?;
    }
    if insist(frontend, &Change { removed: keys, ..CLOSED })? {
        // The rings stay granted until the backend has unmapped them.
        await_back(frontend, timeout, |back| !matches!(back, Connected | Closing))?;
    }
    Ok(())
}

/// Writes a change whatever state this end has, unless the device's nodes are not its own: `false` then.
fn insist(frontend: &mut Frontend, change: &Change<'_>) -> Result<bool, Error> {
    if frontend.write(None, change)? {
        return Ok(true);
    }
    match read(frontend, &[])? {
        Some(seen) => {
            frontend.written = seen.own;
            frontend.write(None, change)
        }
        None => Ok(false),
    }
}

/// Waits for the backend's state, for a limited time: a backend that was killed never changes it.
fn await_back(
    frontend: &mut Frontend,
    timeout: Duration,
    wanted: impl Fn(XenbusState) -> bool,
) -> Result<(), Error> {
    let Some(client) = frontend.link.client() else { return Ok(()) };
    let deadline = Instant::now() + timeout;
    while !wanted(frontend.end.other_state(client)?) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!("timed out: the backend does not close");
            return Ok(());
        }
        match client.wait_event(Some(left)) {
            Ok(_) | Err(Error::EventsLost(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
