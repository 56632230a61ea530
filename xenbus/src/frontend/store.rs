//! What a frontend reads of both ends, and whether the device is still the same.

use ring_abi::xenbus::key;

use super::{FrontDevice, Frontend};
use crate::XenbusState;
use crate::device_end::{Change, exists};
use crate::keys::Keys;
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

/// Whether a device's nodes are not its own any more: removed, or another device's, which has another instance, or the first
/// state of all where the backend writes none. EACCES is a removed node too: the one above it may not be readable.
pub(super) fn is_gone(
    client: &mut Client,
    end: &crate::DeviceEnd,
    own: XenbusState,
    written: XenbusState,
    instance: Option<&str>,
) -> Result<bool, Error> {
    match own {
        XenbusState::Unknown if !exists(client, end.path())? => return Ok(true),
        XenbusState::Initialising if written != XenbusState::Initialising => return Ok(true),
        _ => {}
    }
    let found = end.instance(client)?;
    Ok(found.is_some() && instance.is_some() && found.as_deref() != instance)
}

/// Reads both ends, of the backend's keys those that are `known`; `None` where the device's nodes are not its own any more, or without a connection.
pub(super) fn read(frontend: &mut Frontend, known: &[&str]) -> Result<Option<Seen>, Error> {
    let Some(client) = frontend.link.client() else { return Ok(None) };
    let end = &frontend.end;
    let back = end.other_state(client)?;
    let own = end.state(client)?;
    if is_gone(client, end, own, frontend.written, frontend.instance.as_deref())? {
        return Ok(None);
    }
    if frontend.instance.is_none() {
        frontend.instance = end.instance(client)?;
    }
    let online = client.read_opt(&format!("{}/{}", end.other_path(), key::ONLINE));
    let online = !matches!(online, Ok(Some(text)) if text.trim_ascii() == b"0");
    let keys = match back {
        XenbusState::InitWait | XenbusState::Connected => end.known_keys(client, known)?,
        _ => Keys::new(end.other_path()),
    };
    Ok(Some(Seen { own, back, online, keys }))
}
