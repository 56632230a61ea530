//! From the store's events to the handshake's actions.

use ring_abi::xenbus::key;

use super::store::{CLOSED, CLOSING, Failed, Seen, read, read_own, survive};
use super::{FrontDevice, Frontend};
use crate::XenbusState;
use crate::device_end::Change;
use crate::handshake::front::{Action, Handshake};
use crate::keys::Keys;
use crate::store_link::LinkEvent;
use xenstore::{Error, Nodes, XsError};

/// What this end reports instead of closing a device that is in use.
const IN_USE: &str = "the device is in use; it is closed once it is not";

/// Most steps taken for one event: a backend that changes its state again and again takes no more of this thread's time. Each
/// change is an event of its own.
const MAX_STEPS: usize = 16;

/// The tokens of the watches.
const BACK: &str = "back";
const OWN: &str = "own";

/// Takes the store's events until there are no more, and carries out what they cause.
///
/// # Errors
/// The driver's, and those of the store but a lost connection.
pub fn follow<D: FrontDevice>(device: &mut D) -> Result<(), D::Error> {
    loop {
        let frontend = device.frontend();
        match frontend.link.poll(&frontend.event_set) {
            LinkEvent::None => return Ok(()),
            LinkEvent::Changed => refresh(device)?,
            LinkEvent::Connected => attach(device)?,
        }
    }
}

/// Reads both ends' states and carries out actions until there is nothing to do, as after an event.
///
/// # Errors
/// As [`follow`].
pub fn refresh<D: FrontDevice>(device: &mut D) -> Result<(), D::Error> {
    let _span = device.frontend().span_to_enter().entered();
    for _ in 0..MAX_STEPS {
        let stepped = step(device);
        if !survive(device, stepped)?.unwrap_or(false) {
            return Ok(());
        }
    }
    Ok(())
}

/// Sets watches over a new connection to the store, and takes up the device as the store has it: a connection goes on, a
/// device that is closed says so, and otherwise the handshake starts over, as this end's last state may not have been
/// written.
///
/// # Errors
/// As [`follow`].
pub fn attach<D: FrontDevice>(device: &mut D) -> Result<(), D::Error> {
    let span = device.frontend().span_to_enter();
    span.in_scope(|| {
        let attached = try_attach(device);
        survive(device, attached)
    })?;
    refresh(device)
}

pub(super) fn try_attach<D: FrontDevice>(device: &mut D) -> Result<(), Failed<D::Error>> {
    let frontend = device.frontend();
    let Some(client) = frontend.link.client().filter(|_| !frontend.removed) else { return Ok(()) };
    frontend.end.watch_other(client, BACK)?;
    client.watch(&format!("{}/{}", frontend.end.path(), key::STATE), OWN)?;
    // The refresh that follows finds it gone.
    let Some(own) = read_own(frontend)? else { return Ok(()) };
    let goes_on = frontend.is_connected() && own == XenbusState::Connected;
    frontend.written = own;
    if frontend.is_closing() {
        return begin_close(device);
    }
    if frontend.is_closed() {
        frontend.write(None, &CLOSED)?;
    } else if !goes_on {
        frontend.handshake.restart(own);
        device.disconnected();
    }
    Ok(())
}

/// Carries out the handshake's next action; `false` if there is none.
fn step<D: FrontDevice>(device: &mut D) -> Result<bool, Failed<D::Error>> {
    let frontend = device.frontend();
    if frontend.removed || frontend.is_closed() && !frontend.is_closing() {
        return Ok(false);
    }
    let Some(seen) = read(frontend, D::BACKEND_KEYS)? else {
        if frontend.link.is_connected() {
            return remove(device).map(|()| false);
        }
        return Ok(false);
    };
    let frontend = device.frontend();
    if seen.own != frontend.written {
        tracing::warn!(expected = %frontend.written, found = %seen.own, "the state was overwritten: starting over");
        frontend.written = seen.own;
        frontend.handshake.restart(seen.own);
        device.disconnected();
        return Ok(true);
    }
    if frontend.is_closing() {
        finish_close(device).map_err(Failed::Device)?;
        return Ok(false);
    }
    let is_kept = device.is_in_use() && is_kept(device, &seen);
    let is_connected = device.frontend().is_connected();
    if is_kept && (seen.back == XenbusState::Closing || is_connected && seen.back == XenbusState::Connected) {
        // While it is lost, its successor says first whether it will serve the device.
        if !device.is_backend_lost() {
            refuse_close(device.frontend())?;
        }
        return Ok(false);
    }
    if seen.back == XenbusState::InitWait && device.is_backend_lost() {
        device.frontend().handshake.lost_before_connected(seen.own);
    }
    let before = device.frontend().handshake.clone();
    let action = device.frontend().handshake.next(seen.back, seen.online || is_kept);
    let done = perform(device, action, &before, &seen);
    if !matches!(done, Ok(true)) {
        device.frontend().handshake = before;
    }
    match action {
        // A connected backend may have changed its keys.
        Action::Wait if device.frontend().is_connected() && seen.back == XenbusState::Connected => {
            device.changed(&seen.keys).map_err(Failed::Device)?;
            Ok(false)
        }
        Action::Wait => Ok(false),
        // Where the write was refused, what has changed is read.
        _ => done.map(|_| true),
    }
}

/// Whether a device in use is not to be closed although its backend or the toolstack asks for that. Where the toolstack does, a
/// backend that is lost has a successor, which serves the device until it is not in use any more, or says Closed if it cannot.
/// Where the backend closes by itself its rings must not have failed.
fn is_kept<D: FrontDevice>(device: &mut D, seen: &Seen) -> bool {
    match seen.online {
        true => {
            let is_closing = seen.back == XenbusState::Closing;
            is_closing && !device.is_backend_lost() && device.frontend().is_connected()
        }
        false => seen.back != XenbusState::Closed,
    }
}

/// Carries out an action; `false` where a write was refused, as the store had changed.
fn perform<D: FrontDevice>(
    device: &mut D,
    action: Action,
    before: &Handshake,
    seen: &Seen,
) -> Result<bool, Failed<D::Error>> {
    match action {
        Action::Wait => Ok(true),
        Action::State(state) => {
            tracing::debug!(%state, "starting over");
            // The state is written first: to a backend, an event channel that closes while the frontend is still Connected
            // means that the frontend has died.
            if !write(device, seen, state, &Keys::default(), D::CONNECTION_KEYS)? {
                return Ok(false);
            }
            device.disconnected();
            Ok(true)
        }
        Action::Offer => {
            let keys = device.offer(&seen.keys).map_err(Failed::Device)?;
            let state = before.manner().offers_with;
            let written = write(device, seen, state, &keys, &stale_keys(D::CONNECTION_KEYS, &keys));
            if !matches!(written, Ok(true)) {
                device.disconnected();
            }
            Ok(written?)
        }
        Action::Connected => {
            device.connected(&seen.keys).map_err(Failed::Device)?;
            let written = write(device, seen, XenbusState::Connected, &Keys::default(), &[])?;
            if written {
                clear_error(device.frontend());
            }
            Ok(written)
        }
        Action::Disconnect => {
            tracing::warn!("disconnected: waiting for the backend");
            device.disconnected();
            Ok(true)
        }
        Action::Close => {
            // Requests on rings that no backend has served are not answered.
            if !before.is_connected() {
                device.disconnected();
            }
            begin_close(device).map(|()| true)
        }
    }
}

/// Keys of an earlier connection that the new one does not write.
fn stale_keys<'k>(all: &[&'k str], new: &Keys) -> Vec<&'k str> {
    all.iter().copied().filter(|key| new.get(key).is_none()).collect()
}

fn write<D: FrontDevice>(
    device: &mut D,
    seen: &Seen,
    state: XenbusState,
    keys: &Keys,
    removed: &[&str],
) -> Result<bool, Error> {
    let frontend = device.frontend();
    if state == frontend.written && keys.is_empty() && removed.is_empty() {
        return Ok(true);
    }
    frontend.write(Some(seen.back), &Change { state, rewrite: false, keys, removed, error: None })
}

/// Tells a device that its nodes are not its own any more.
fn remove<D: FrontDevice>(device: &mut D) -> Result<(), Failed<D::Error>> {
    tracing::info!("the device was removed");
    let frontend = device.frontend();
    frontend.removed = true;
    frontend.handshake.close();
    device.disconnected();
    device.removed().map_err(Failed::Device)
}

/// Removes this end's error of an earlier connection, or that it was not closed.
fn clear_error(frontend: &mut Frontend) {
    if let Some(client) = frontend.link.client() {
        frontend.end.clear_error(client);
    }
}

/// Reports that the device is not closed, unless that is reported already.
fn refuse_close<E>(frontend: &mut Frontend) -> Result<(), Failed<E>> {
    let Some(client) = frontend.link.client() else { return Ok(()) };
    if !client.exists(&frontend.end.error_path())? {
        frontend.end.error(client, XsError::EBUSY.errno(), IN_USE);
    }
    Ok(())
}

/// Starts to close because the backend does: Closing is published if something is in flight, otherwise Closed.
fn begin_close<D: FrontDevice>(device: &mut D) -> Result<(), Failed<D::Error>> {
    clear_error(device.frontend());
    if device.is_busy() {
        device.frontend().write(None, &CLOSING)?;
        return Ok(());
    }
    try_finish(device)
}

/// Publishes Closed if the device closes after its backend and nothing is in flight any more.
///
/// # Errors
/// Those of the store but a lost connection.
pub fn finish_close<D: FrontDevice>(device: &mut D) -> Result<(), D::Error> {
    if !device.frontend().is_closing() || device.is_busy() {
        return Ok(());
    }
    let _span = device.frontend().span_to_enter().entered();
    let finished = try_finish(device);
    survive(device, finished).map(drop)
}

fn try_finish<D: FrontDevice>(device: &mut D) -> Result<(), Failed<D::Error>> {
    let frontend = device.frontend();
    // Without a connection to the store it is written later.
    let written = frontend.write(None, &Change { removed: D::CONNECTION_KEYS, ..CLOSED });
    frontend.handshake.closed();
    device.closed();
    written?;
    Ok(())
}
