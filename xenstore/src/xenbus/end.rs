//! One end of a device: its own node, the other end's node, and what the two say through them.

use std::fmt;

use super::device::Device;
use super::keys::Keys;
use super::read_tree::gather;
use crate::client::{Client, Error, Nodes, Result};
use crate::{DomId, XenbusState, XsError};

/// Where this end writes and where it reads the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    path: String,
    other_path: String,
    other_id: DomId,
}

impl End {
    /// The frontend of a device, by the usual paths.
    pub fn front(device: &Device) -> End {
        End { path: device.front_path(), other_path: device.back_path(), other_id: device.back }
    }

    /// The backend of a device, by the usual paths.
    pub fn back(device: &Device) -> End {
        End { path: device.back_path(), other_path: device.front_path(), other_id: device.front }
    }

    /// The frontend at this path, its other end as the toolstack wrote it into `backend` and `backend-id`.
    ///
    /// # Errors
    /// ENOENT when the toolstack has not written them, [`Error::Value`] when they are no path and no domain.
    pub fn find_front(nodes: &mut impl Nodes, path: &str) -> Result<End> {
        End::find(nodes, path, "backend", "backend-id")
    }

    /// The backend at this path, its other end as the toolstack wrote it into `frontend` and `frontend-id`.
    ///
    /// # Errors
    /// As [`End::find_front`].
    pub fn find_back(nodes: &mut impl Nodes, path: &str) -> Result<End> {
        End::find(nodes, path, "frontend", "frontend-id")
    }

    fn find(nodes: &mut impl Nodes, path: &str, other: &str, id: &str) -> Result<End> {
        let other_key = format!("{path}/{other}");
        let other_path = nodes.read_text(&other_key)?;
        if !other_path.starts_with('/') {
            return Err(Error::value(other_key, &other_path, "an absolute path"));
        }
        let other_id = nodes.read_as(&format!("{path}/{id}"))?;
        Ok(End { path: path.to_owned(), other_path, other_id })
    }

    /// This end's node.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The other end's node.
    pub fn other_path(&self) -> &str {
        &self.other_path
    }

    /// The other end's domain.
    pub fn other_id(&self) -> DomId {
        self.other_id
    }

    /// This end's state as it stands in the store; absence and nonsense are Unknown.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn state(&self, nodes: &mut impl Nodes) -> Result<XenbusState> {
        Ok(read_state(nodes, &self.path)?.unwrap_or(XenbusState::Unknown))
    }

    /// The other end's state; absence is Closed (its node is gone, or not ours to see), nonsense Unknown.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn other_state(&self, nodes: &mut impl Nodes) -> Result<XenbusState> {
        Ok(read_state(nodes, &self.other_path)?.unwrap_or(XenbusState::Closed))
    }

    /// Writes this end's state, unless it stands there already, and unless this end's node is gone (the toolstack
    /// has removed the device; writing would bring the node back). `false` when the node is gone.
    ///
    /// # Errors
    /// As any write.
    pub fn switch_state(&self, client: &mut Client, state: XenbusState) -> Result<bool> {
        self.publish(client, &Keys::default(), state)
    }

    /// Writes this end's state as [`End::switch_state`] does, unless this end's node is another device's. `false` when
    /// nothing was written.
    ///
    /// The toolstack may have removed the device and attached another with the same number since this end wrote
    /// `last`. The new node's state is Initialising, which `last` was not.
    ///
    /// # Errors
    /// As any write.
    pub fn switch_state_after(
        &self,
        client: &mut Client,
        last: XenbusState,
        state: XenbusState,
    ) -> Result<bool> {
        client.transaction(|tx| match read_state(tx, &self.path)? {
            None => Ok(false),
            Some(XenbusState::Initialising) if last != XenbusState::Initialising => Ok(false),
            Some(found) => {
                if found != state {
                    tx.write(&format!("{}/state", self.path), state.as_text())?;
                }
                Ok(true)
            }
        })
    }

    /// Writes keys below this end's node and then its state, in one transaction: the other end sees all or none.
    /// Nothing is written, and `false` returned, when this end's node is gone.
    ///
    /// # Errors
    /// As any write.
    pub fn publish(&self, client: &mut Client, keys: &Keys, state: XenbusState) -> Result<bool> {
        client.transaction(|tx| {
            if !tx.exists(&self.path)? {
                return Ok(false);
            }
            for (key, value) in keys.iter() {
                tx.write(&format!("{}/{key}", self.path), value)?;
            }
            // Written only when it changes: every write wakes the other end.
            if read_state(tx, &self.path)? != Some(state) {
                tx.write(&format!("{}/state", self.path), state.as_text())?;
            }
            Ok(true)
        })
    }

    /// Removes keys of this end's, e.g. the ring references of a connection that is over. Missing ones are fine, and
    /// where the whole node is gone a guest is told EACCES: what is above it is dom0's.
    ///
    /// # Errors
    /// As any write.
    pub fn retract<'k>(&self, client: &mut Client, keys: impl IntoIterator<Item = &'k str>) -> Result<()> {
        for key in keys {
            match client.rm(&format!("{}/{key}", self.path)) {
                Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// All keys of this end, those the toolstack wrote among them.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn keys(&self, nodes: &mut impl Nodes) -> Result<Keys> {
        gather(nodes, &self.path)
    }

    /// All keys of the other end, as they are once it has written its state. Not in a transaction: an other end
    /// that never stops writing would make us begin again and again.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn other_keys(&self, nodes: &mut impl Nodes) -> Result<Keys> {
        gather(nodes, &self.other_path)
    }

    /// Watches the other end's state; the token comes back in every event, the first at once.
    ///
    /// # Errors
    /// As [`Client::watch`].
    pub fn watch_other(&self, client: &mut Client, token: &str) -> Result<()> {
        client.watch(&format!("{}/state", self.other_path), token)
    }

    /// Takes the watch back.
    ///
    /// # Errors
    /// As [`Client::unwatch`].
    pub fn unwatch_other(&self, client: &mut Client, token: &str) -> Result<()> {
        client.unwatch(&format!("{}/state", self.other_path), token)
    }

    /// Reports an error where toolstacks look: `<number> <text>` in `error/<this end>/error` below this end's
    /// domain's home, as Linux's `xenbus_dev_error` does, and in the log.
    pub fn error(&self, client: &mut Client, errno: i32, what: impl fmt::Display) {
        tracing::error!(device = self.path, errno, "{what}");
        // xenbus_dev_error has no one to tell if this fails, neither have we: the log has it.
        if let Err(e) = client.write(&self.error_path(), format!("{} {what}", errno.abs())) {
            tracing::warn!(device = self.path, "writing the error node: {e}");
        }
    }

    /// Reports an error and closes this end, as Linux's `xenbus_dev_fatal` does.
    ///
    /// # Errors
    /// As [`End::switch_state`].
    pub fn fatal(&self, client: &mut Client, errno: i32, what: impl fmt::Display) -> Result<bool> {
        self.error(client, errno, what);
        self.switch_state(client, XenbusState::Closing)
    }

    /// `/local/domain/<own>/error/<rest of this end's path>/error`
    pub fn error_path(&self) -> String {
        let own = self.path.strip_prefix("/local/domain/").and_then(|rest| rest.split_once('/'));
        match own {
            Some((domid, node)) => format!("/local/domain/{domid}/error/{node}/error"),
            None => format!("error/{}/error", self.path.trim_start_matches('/')),
        }
    }
}

/// The state at a node; `None` when there is none to be seen.
fn read_state(nodes: &mut impl Nodes, path: &str) -> Result<Option<XenbusState>> {
    match nodes.read_text(&format!("{path}/state")) {
        Ok(text) => Ok(Some(text.parse().unwrap_or_default())),
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        Err(e) => Err(e),
    }
}
