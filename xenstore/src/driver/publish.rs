//! Reads both ends of a device and writes the backend's update.

use ring_abi::xenbus::key;

use super::{DeviceState, Update};
use crate::client::{Client, Nodes, Result};
use crate::xenbus::{DeviceEnd, read_tree};
use crate::{Keys, XenbusState};

/// Reads the state of both ends; `None` when the backend's node is removed. `first`: no [`BackDevice`] serves the
/// device yet, so that the frontend's keys are read whatever state an earlier backend has written.
///
/// [`BackDevice`]: super::BackDevice
pub(super) fn read(client: &mut Client, end: &DeviceEnd, first: bool) -> Result<Option<DeviceState>> {
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
        true => read_tree(client, end.other_path())?,
        false => Keys::new(end.other_path()),
    };
    // A value that is no number is not the 0 that toolstacks write.
    let online = own.get(key::ONLINE).is_none_or(|o| o.trim_ascii() != "0");
    Ok(Some(DeviceState { own, own_state, other_state, other, online }))
}

/// Writes an update made for `seen` in one transaction. `false`, and nothing is written, where the backend's state
/// has changed since `seen` was read (a toolstack wrote Closing) or its node is removed: the device's state must be
/// read again.
pub(super) fn publish(
    client: &mut Client,
    end: &DeviceEnd,
    seen: &DeviceState,
    update: &Update,
) -> Result<bool> {
    let state = update.state.unwrap_or(seen.own_state);
    let changed = update.rewrite || state != seen.own_state;
    if update.keys.is_empty() && !changed {
        return Ok(true);
    }
    client.transaction(|tx| {
        if !tx.exists(end.path())? || end.state(tx)? != seen.own_state {
            return Ok(false);
        }
        for (key, value) in update.keys.iter().filter(|(key, value)| seen.own.get(key) != Some(value)) {
            tx.write(&format!("{}/{key}", end.path()), value)?;
        }
        // Written only when it changes: every write fires the frontend's watch.
        if changed {
            tx.write(&format!("{}/{}", end.path(), key::STATE), state.as_text())?;
        }
        Ok(true)
    })
}
