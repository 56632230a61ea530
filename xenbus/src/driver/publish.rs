//! Reads both ends of a device and writes the backend's update.

use ring_abi::xenbus::key;

use super::unserved::without_own;
use super::{DeviceState, Update};
use crate::device_end::{Change, Expected};
use crate::handshake::back::ring_keys;
use crate::{DeviceEnd, Keys, XenbusState, read_tree};
use xenstore::client::Result;
use xenstore::{Client, Nodes};

/// Reads the state of both ends; `None` when the backend's node is removed. `first`: no [`BackDevice`] serves the
/// device yet, so that the frontend's keys are read whatever state an earlier backend has written. Of these the `known` ones
/// are read.
///
/// [`BackDevice`]: super::BackDevice
pub(super) fn read(
    client: &mut Client,
    end: &DeviceEnd,
    first: bool,
    known: &[&str],
) -> Result<Option<DeviceState>> {
    if !client.exists(end.path())? {
        return Ok(None);
    }
    // The state first: a frontend writes its keys before it, so that keys read now are at least as new.
    let other_state = end.other_state(client)?;
    let own = read_tree(client, end.path())?;
    // If the node was removed while it was read, some keys may be missing, which is no error.
    if !client.exists(end.path())? {
        return Ok(None);
    }
    let own_state = own.get(key::STATE).and_then(|s| s.parse().ok()).unwrap_or_default();
    let ready = matches!(other_state, XenbusState::Initialised | XenbusState::Connected);
    let other = match ready && (first || own_state != XenbusState::Connected) {
        true => end.known_keys(client, known)?,
        false => Keys::new(end.other_path()),
    };
    // A value that is no number is not the 0 that toolstacks write.
    let online = own.get(key::ONLINE).is_none_or(|o| o.trim_ascii() != "0");
    Ok(Some(DeviceState { own, own_state, other_state, other, online }))
}

/// Whether an update made for `seen` has anything to write.
pub(super) fn writes(seen: &DeviceState, update: &Update) -> bool {
    let changes = update.state.is_some_and(|state| state != seen.own_state);
    changes || update.rewrite || !update.keys.is_empty()
}

/// Writes an update made for `seen`, in one transaction, and `instance` with the first. `false`, and nothing is written,
/// where the store has changed since `seen` was read: the device is another, the toolstack wrote Closing, or, where the
/// update changes the state, the frontend has changed its own or its rings. The device's state must be read again.
pub(super) fn publish(
    client: &mut Client,
    end: &DeviceEnd,
    seen: &DeviceState,
    update: &Update,
    instance: &str,
) -> Result<bool> {
    let state = update.state.unwrap_or(seen.own_state);
    let changes = state != seen.own_state;
    let mut keys = Keys::default();
    keys.extend(update.keys.iter().filter(|(key, value)| seen.own.get(key) != Some(value)));
    let found = seen.own.get(key::INSTANCE);
    if found.is_none() {
        keys.set(key::INSTANCE, instance);
    }
    // Until it has an instance, a device is told from its successor by what the toolstack wrote.
    let toolstacks = found.is_none().then(|| without_own(&seen.own));
    let rings = ring_keys(&seen.other);
    let expected = Expected {
        instance: found,
        own: seen.own_state,
        own_keys: toolstacks.as_ref(),
        other: changes.then_some(seen.other_state),
        other_keys: changes.then_some(&rings),
    };
    let error = update.error.as_ref().map(|failure| (failure.errno, failure.what.as_str()));
    let change = Change { state, rewrite: update.rewrite, keys: &keys, removed: &[], error };
    end.change(client, &expected, &change)
}
