//! Reads both ends of a device and writes the backend's update.

use ring_abi::xenbus::key;

use super::unserved::without_own;
use super::{DeviceState, Update};
use crate::device_end::{Change, Expected, state_of, state_path};
use crate::handshake::back::ring_keys;
use crate::read_tree::{read_known_listed, read_listed};
use crate::{DeviceEnd, Keys, XenbusState};
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
    // The state first: a frontend writes its keys before it, so that keys read now are at least as new.
    let other_state = state_path(end.other_path());
    let (states, names) = client.read_each_and_directory(&[other_state], end.path())?;
    let other_state = states.into_iter().next().map_or(Ok(None), state_of)?.unwrap_or(XenbusState::Closed);
    let own = read_listed(client, end.path(), names)?;
    let own_state = own.get(key::STATE).and_then(|s| s.parse().ok()).unwrap_or_default();
    let ready = matches!(other_state, XenbusState::Initialised | XenbusState::Connected);
    let reads_other = ready && (first || own_state != XenbusState::Connected);
    let other = if reads_other { other_keys(client, end, known)? } else { without_other(client, end)? };
    // If the node was removed while it was read, some keys may be missing, which is no error.
    let Some(other) = other else { return Ok(None) };
    // A value that is no number is not the 0 that toolstacks write.
    let online = own.get(key::ONLINE).is_none_or(|o| o.trim_ascii() != "0");
    Ok(Some(DeviceState { own, own_state, other_state, other, online }))
}

/// The `known` keys of the other end; `None` where this end's node is removed.
fn other_keys(client: &mut Client, end: &DeviceEnd, known: &[&str]) -> Result<Option<Keys>> {
    let (own, names) = client.read_each_and_directory(&[end.path().to_owned()], end.other_path())?;
    match own.into_iter().next() {
        Some(Err(e)) if !e.is_not_found() => Err(e),
        Some(Ok(_)) => read_known_listed(client, end.other_path(), names, known).map(Some),
        _ => Ok(None),
    }
}

/// No keys of the other end; `None` where this end's node is removed.
fn without_other(client: &mut Client, end: &DeviceEnd) -> Result<Option<Keys>> {
    Ok(client.exists(end.path())?.then(|| Keys::new(end.other_path())))
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
