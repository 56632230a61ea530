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
    let other = match reads_other(other_state, first, own_state) {
        true => other_keys(client, end, known)?,
        false => without_other(client, end)?,
    };
    // If the node was removed while it was read, some keys may be missing, which is no error.
    let Some(other) = other else { return Ok(None) };
    // A value that is no number is not the 0 that toolstacks write.
    let online = own.get(key::ONLINE).is_none_or(|o| o.trim_ascii() != "0");
    Ok(Some(DeviceState { own, own_state, other_state, other, online }))
}

/// Whether the other end's keys are of interest.
fn reads_other(other_state: XenbusState, first: bool, own_state: XenbusState) -> bool {
    use XenbusState::{Closing, Connected, Initialised};
    match other_state {
        Initialised | Connected => first || own_state != Connected,
        // Its rings may still be in use: Linux's blkfront, before 5.16, is Closing as long as its disk is open.
        Closing => first,
        _ => false,
    }
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
/// update changes the state, the frontend has changed its own or its rings. The device's state must be read again. A frontend that
/// was offering other rings while it was read had some keys no more, or not yet: before it is refused, the `known` ones are looked at again.
pub(super) fn publish(
    client: &mut Client,
    end: &DeviceEnd,
    seen: &DeviceState,
    update: &Update,
    instance: &str,
    known: &[&str],
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
    let is_refused =
        changes && update.error.is_some() && reads_other(seen.other_state, false, seen.own_state);
    let expected = Expected {
        instance: found,
        own: seen.own_state,
        own_keys: toolstacks.as_ref(),
        other: changes.then_some(seen.other_state),
        other_keys: changes.then_some(&rings),
        other_known: is_refused.then_some((&seen.other, known)),
    };
    let error = update.error.as_ref().map(|failure| (failure.errno, failure.what.as_str()));
    let change = Change { state, rewrite: update.rewrite, keys: &keys, removed: &[], error };
    end.change(client, &expected, &change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, driver::Failure};
    use ring_abi::DomId;
    use xenstore::server::{Config, Store};

    const KNOWN: &[&str] = &["ring-ref", "event-channel"];

    #[test]
    fn frontend_that_offered_other_rings_while_it_was_read_is_read_again_and_not_refused() {
        let store = Store::spawn(Config::default()).unwrap();
        let mut client = store.client().unwrap();
        let device = Device::new("vbd", DomId(1), 0);
        let (end, front) = (DeviceEnd::back(&device), device.front_path());
        client.write(&format!("{}/state", end.path()), XenbusState::InitWait.as_text()).unwrap();
        client.write(&format!("{front}/state"), XenbusState::Initialised.as_text()).unwrap();
        // Between the keys of the earlier rings and those of the next ones.
        let seen = read(&mut client, &end, true, KNOWN).unwrap().unwrap();
        let error = Some(Failure::new(22, "event-channel: missing, expected u32"));
        let refused = Update { state: Some(XenbusState::Closing), error, ..Update::default() };
        for (key, value) in [("ring-ref", "8"), ("event-channel", "9")] {
            client.write(&format!("{front}/{key}"), value).unwrap();
        }
        assert!(!publish(&mut client, &end, &seen, &refused, "1", KNOWN).unwrap());
        assert_eq!(end.state(&mut client).unwrap(), XenbusState::InitWait);
        // What stays wrong is refused.
        client.rm(&format!("{front}/event-channel")).unwrap();
        let seen = read(&mut client, &end, true, KNOWN).unwrap().unwrap();
        assert!(publish(&mut client, &end, &seen, &refused, "1", KNOWN).unwrap());
        assert_eq!(end.state(&mut client).unwrap(), XenbusState::Closing);
    }
}
