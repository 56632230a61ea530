//! Reads both ends of a device and writes the backend's answer.

use super::{Answer, View};
use crate::client::{Client, Nodes, Result};
use crate::xenbus::{End, gather};
use crate::{Keys, XenbusState};

/// What both ends say now; `None` when the backend's node is gone. `first`: nothing serves the device yet, so that
/// the frontend's keys are read whatever an earlier backend has left.
pub(super) fn view(client: &mut Client, end: &End, first: bool) -> Result<Option<View>> {
    if !client.exists(end.path())? {
        return Ok(None);
    }
    // The state first: a frontend writes its keys before it, so that keys read now are at least as new.
    let other_state = end.other_state(client)?;
    let own = gather(client, end.path())?;
    // Removed meanwhile, some keys may be missing: that is no device to complain of.
    if !client.exists(end.path())? {
        return Ok(None);
    }
    let own_state = own.get("state").and_then(|s| s.parse().ok()).unwrap_or_default();
    let ready = matches!(other_state, XenbusState::Initialised | XenbusState::Connected);
    let other = match ready && (first || own_state != XenbusState::Connected) {
        true => gather(client, end.other_path())?,
        false => Keys::new(end.other_path()),
    };
    // What is no number is not the toolstack's 0.
    let online = own.get("online").is_none_or(|o| o.trim_ascii() != "0");
    Ok(Some(View { own, own_state, other_state, other, online }))
}

/// Writes an answer to `view`, all of it or nothing; `false` where the state changed after the view was taken (a
/// toolstack asks to close) or the node is gone: look again.
pub(super) fn publish(client: &mut Client, end: &End, view: &View, answer: &Answer) -> Result<bool> {
    let state = answer.state.unwrap_or(view.own_state);
    let changed = answer.rewrite || state != view.own_state;
    if answer.keys.is_empty() && !changed {
        return Ok(true);
    }
    client.transaction(|tx| {
        if !tx.exists(end.path())? || end.state(tx)? != view.own_state {
            return Ok(false);
        }
        for (key, value) in answer.keys.iter().filter(|(key, value)| view.own.get(key) != Some(value)) {
            tx.write(&format!("{}/{key}", end.path()), value)?;
        }
        // Written only when it changes: every write wakes the other end.
        if changed {
            tx.write(&format!("{}/state", end.path()), state.as_text())?;
        }
        Ok(true)
    })
}
