//! What a frontend reads of both ends, and whether the device is still the same.

use ring_abi::xenbus::key;

use super::{FrontDevice, Frontend};
use crate::XenbusState;
use crate::device_end::{Change, DeviceEnd, exists, state_of, state_path, text};
use crate::keys::Keys;
use crate::read_tree::read_known_listed;
use xenstore::{Client, Error, Nodes};

/// No keys.
const NONE: &Keys = &Keys::empty();

/// The change to Closing.
pub(super) const CLOSING: Change<'_> =
    Change { state: XenbusState::Closing, rewrite: false, keys: NONE, removed: &[], error: None };

/// The change to Closed.
pub(super) const CLOSED: Change<'_> = Change { state: XenbusState::Closed, ..CLOSING };

/// Why a step ended: the store failed, or the driver.
pub(super) enum Failed<E> {
    Store(Error),
    Device(E),
}

impl<E> From<Error> for Failed<E> {
    fn from(error: Error) -> Self {
        Failed::Store(error)
    }
}

/// What the store has of a device at one moment.
pub(super) struct Seen {
    pub(super) own: XenbusState,
    pub(super) back: XenbusState,
    pub(super) online: bool,
    /// Read while the backend is InitWait or Connected.
    pub(super) keys: Keys,
}

/// Drops the store's connection if it is lost; `None` then.
pub(super) fn survive<D: FrontDevice, T>(
    device: &mut D,
    outcome: Result<T, Failed<D::Error>>,
) -> Result<Option<T>, D::Error> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Failed::Store(error)) if error.is_disconnected() => {
            let frontend = device.frontend();
            frontend.link.lost(&error, &frontend.event_set);
            Ok(None)
        }
        Err(Failed::Store(error)) => Err(error.into()),
        Err(Failed::Device(error)) => Err(error),
    }
}

/// Whether a device's nodes are not its own any more, which has read this end's state and the instance: removed, or another device's,
/// which has another instance, or the first state of all and no instance yet, or none at all as its backend writes none. EACCES is a removed node too: the one
/// above it may not be readable.
fn is_gone(
    client: &mut Client,
    end: &DeviceEnd,
    (own, written): (XenbusState, XenbusState),
    (found, instance): (Option<&str>, Option<&str>),
) -> Result<bool, Error> {
    match own {
        XenbusState::Unknown if !exists(client, end.path())? => return Ok(true),
        // The guest itself has overwritten its state where the instance is the same.
        XenbusState::Initialising if written != XenbusState::Initialising => {
            return Ok(found.is_none() || found != instance);
        }
        _ => {}
    }
    Ok(found.is_some() && instance.is_some() && found != instance)
}

/// Reads this end's state; `None` where the device's nodes are not its own any more.
pub(super) fn read_own(frontend: &mut Frontend) -> Result<Option<XenbusState>, Error> {
    let Some(client) = frontend.link.client() else { return Ok(None) };
    let end = &frontend.end;
    let mut found = client.read_each(&[state_path(end.path()), end.instance_path()])?.into_iter();
    let own = found.next().map_or(Ok(None), state_of)?.unwrap_or_default();
    let instance = found.next().map_or(Ok(None), text)?;
    let instances = (instance.as_deref(), frontend.instance.as_deref());
    Ok((!is_gone(client, end, (own, frontend.written), instances)?).then_some(own))
}

/// Reads both ends, of the backend's keys those that are `known`; `None` where the device's nodes are not its own any more, or without a connection.
pub(super) fn read(frontend: &mut Frontend, known: &[&str]) -> Result<Option<Seen>, Error> {
    let Some(client) = frontend.link.client() else { return Ok(None) };
    let end = &frontend.end;
    let online = format!("{}/{}", end.other_path(), key::ONLINE);
    // The backend's state before its keys, which it writes before that.
    let paths = [state_path(end.other_path()), state_path(end.path()), end.instance_path(), online];
    let (found, names) = client.read_each_and_directory(&paths, end.other_path())?;
    let mut found = found.into_iter();
    let mut next = || found.next().unwrap_or(Ok(Vec::new()));
    let back = state_of(next())?.unwrap_or(XenbusState::Closed);
    let own = state_of(next())?.unwrap_or_default();
    let instance = text(next())?;
    let online = !matches!(next(), Ok(text) if text.trim_ascii() == b"0");
    let instances = (instance.as_deref(), frontend.instance.as_deref());
    if is_gone(client, end, (own, frontend.written), instances)? {
        return Ok(None);
    }
    if frontend.instance.is_none() {
        frontend.instance = instance;
    }
    let keys = match back {
        XenbusState::InitWait | XenbusState::Connected => {
            read_known_listed(client, end.other_path(), names, known)?
        }
        _ => Keys::new(end.other_path()),
    };
    Ok(Some(Seen { own, back, online, keys }))
}
