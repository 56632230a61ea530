//! A toolstack's side of one device: its nodes and the states of both ends.

use std::thread;
use std::time::{Duration, Instant};

use ::toolstack::machine::attached::{self, Attached};
use ::toolstack::machine::device::NewDevice;
use ::toolstack::machine::progress::{self, Closed, States};
use ring_abi::DomId;
use testkit::BOUND;
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::{Client, Nodes};

use super::frontends::{GuestDomain, Stop};

/// How long a device that could not be connected may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of an operation or a check; why it failed.
pub(crate) type Outcome = Result<(), String>;

/// The domain of a guest.
pub(crate) fn domid(guest: usize) -> DomId {
    DomId(guest as u16 + 1)
}

/// Closes a device as a toolstack that waits, or as one that does not.
pub(crate) fn close(client: &mut Client, device: &Device, force: bool) -> Outcome {
    if force {
        return remove(client, device);
    }
    let Some(attached) = find(client, device)? else { return Ok(()) };
    match progress::close(client, &attached, BOUND) {
        Ok(Closed::Yes) => Ok(()),
        Ok(other) => Err(format!("{}: {other:?}", device.front_path())),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes a device's nodes, if it exists.
pub(crate) fn remove(client: &mut Client, device: &Device) -> Outcome {
    let attached = find(client, device)?;
    attached.map_or(Ok(()), |attached| attached.remove(client)).map_err(|error| error.to_string())
}

fn find(client: &mut Client, device: &Device) -> Result<Option<Attached>, String> {
    Attached::find(client, device).map_err(|error| error.to_string())
}

/// Attaches a device while its frontend is opened. If it cannot be connected, it is closed and removed.
pub(crate) fn attach<T: Send>(
    client: &mut Client,
    guest: &GuestDomain,
    new: &NewDevice,
    open: impl FnOnce(&Stop) -> Option<T> + Send,
) -> Result<T, String> {
    let attachment = attached::add(client, new).map_err(|error| error.to_string())?;
    let stop = Stop::new();
    thread::scope(|scope| {
        let opening = scope.spawn(|| open(&stop));
        let attached = connected_or_error(client, guest, &new.device);
        if attached.is_err() {
            let undone = undo(client, &attachment);
            stop.tell();
            undone?;
        }
        let opened = opening.join().unwrap();
        attached.and_then(|()| opened.ok_or_else(|| "connected, and not opened".into()))
    })
}

/// Waits until a device is connected, or one of its ends has reported an error.
fn connected_or_error(client: &mut Client, guest: &GuestDomain, device: &Device) -> Outcome {
    let connected = Some(XenbusState::Connected);
    let errors = [DeviceEnd::front(device), DeviceEnd::back(device)].map(|end| end.error_path());
    let mut outcome = Err(String::new());
    wait(&format!("{} to connect", device.front_path()), BOUND, || {
        let reported = errors.iter().find_map(|path| client.read_opt(path).unwrap());
        let states = progress::states(client, device).unwrap();
        outcome = match reported {
            _ if guest.is_killed() => Err("the guest is killed".into()),
            Some(text) => Err(String::from_utf8_lossy(&text).into_owned()),
            None if states == (States { front: connected, back: connected }) => Ok(()),
            None => return false,
        };
        true
    })
    .and(outcome)
}

/// Closes and removes a device that could not be connected.
fn undo(client: &mut Client, attached: &Attached) -> Outcome {
    let closed = progress::close(client, attached, CLOSE_TIMEOUT).map(drop);
    closed.and_then(|()| attached.remove(client)).map_err(|error| error.to_string())
}

pub(crate) fn are_connected(client: &mut Client, device: &Device) -> Outcome {
    let connected = Some(XenbusState::Connected);
    let expected = States { front: connected, back: connected };
    let mut states = expected;
    wait(&format!("{} to be connected", device.front_path()), BOUND, || {
        states = progress::states(client, device).unwrap();
        states == expected
    })
    .map_err(|error| format!("{error}: {states:?}"))
}

/// Waits for a condition.
pub(crate) fn wait(what: &str, bound: Duration, mut is: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + bound;
    while !is() {
        if Instant::now() >= deadline {
            return Err(format!("waited {bound:?} for {what}"));
        }
        thread::park_timeout(Duration::from_micros(500));
    }
    Ok(())
}
