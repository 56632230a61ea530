//! One end of a device: its own node, the other end's node, and their states and keys.

use std::fmt;

use ring_abi::DomId;
use ring_abi::xenbus::key;

use super::device::Device;
use super::error_node::{error_directory, remove_error};
use super::keys::Keys;
use super::read_tree::read_tree;
use crate::XenbusState;
use xenstore::XsError;
use xenstore::client::Result;
use xenstore::{Client, Error, Nodes, Transaction};

/// One end of a device: the node this end writes, and the node it reads the other end from (Linux's `nodename` and
/// `otherend` of `struct xenbus_device`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEnd {
    path: String,
    other_path: String,
    other_id: DomId,
}

impl DeviceEnd {
    /// The frontend of a device, at libxl's paths.
    pub fn front(device: &Device) -> DeviceEnd {
        DeviceEnd { path: device.front_path(), other_path: device.back_path(), other_id: device.back }
    }

    /// The backend of a device, at libxl's paths.
    pub fn back(device: &Device) -> DeviceEnd {
        DeviceEnd { path: device.back_path(), other_path: device.front_path(), other_id: device.front }
    }

    /// Reads where a frontend's backend is, as the toolstack wrote it into `backend` and `backend-id`.
    ///
    /// # Errors
    /// ENOENT when the toolstack has not written these keys, [`Error::Value`] when they are not a path and a domain.
    pub fn find_front(nodes: &mut impl Nodes, path: &str) -> Result<DeviceEnd> {
        DeviceEnd::find(nodes, path, key::BACKEND, key::BACKEND_ID)
    }

    /// Reads where a backend's frontend is, as the toolstack wrote it into `frontend` and `frontend-id`.
    ///
    /// # Errors
    /// ENOENT and [`Error::Value`], as [`DeviceEnd::find_front`].
    pub fn find_back(nodes: &mut impl Nodes, path: &str) -> Result<DeviceEnd> {
        DeviceEnd::find(nodes, path, key::FRONTEND, key::FRONTEND_ID)
    }

    fn find(nodes: &mut impl Nodes, path: &str, other: &str, id: &str) -> Result<DeviceEnd> {
        let other_key = format!("{path}/{other}");
        let other_path = nodes.read_text(&other_key)?;
        if !other_path.starts_with('/') {
            return Err(Error::value(other_key, &other_path, "an absolute path"));
        }
        let other_id = nodes.read_as(&format!("{path}/{id}"))?;
        Ok(DeviceEnd { path: path.to_owned(), other_path, other_id })
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

    /// Reads this end's state; Unknown where it is absent or no state.
    pub fn state(&self, nodes: &mut impl Nodes) -> Result<XenbusState> {
        Ok(read_state(nodes, &self.path)?.unwrap_or(XenbusState::Unknown))
    }

    /// Reads the other end's state; Closed where its node is absent or unreadable, Unknown where it is no state.
    pub fn other_state(&self, nodes: &mut impl Nodes) -> Result<XenbusState> {
        Ok(read_state(nodes, &self.other_path)?.unwrap_or(XenbusState::Closed))
    }

    /// Writes this end's state where it changes. `false`, and nothing is written, when this end's node is absent: the
    /// toolstack has removed the device, and a write would create the node again.
    pub fn switch_state(&self, client: &mut Client, state: XenbusState) -> Result<bool> {
        self.publish(client, &Keys::default(), state)
    }

    /// Writes this end's state as [`DeviceEnd::switch_state`] does, unless this end's node is another device's. `false`
    /// when nothing was written.
    ///
    /// The toolstack may have removed the device and attached another with the same number since this end wrote
    /// `last`. The new node's state is Initialising, which `last` was not.
    pub fn switch_state_after(
        &self,
        client: &mut Client,
        last: XenbusState,
        state: XenbusState,
    ) -> Result<bool> {
        self.publish_after(client, last, &Keys::default(), state)
    }

    /// Writes keys and a state as [`DeviceEnd::publish`] does, unless this end's node is another device's, as
    /// [`DeviceEnd::switch_state_after`] tells it.
    pub fn publish_after(
        &self,
        client: &mut Client,
        last: XenbusState,
        keys: &Keys,
        state: XenbusState,
    ) -> Result<bool> {
        self.change_after(client, last, state, |tx| {
            keys.iter().try_for_each(|(key, value)| tx.write(&format!("{}/{key}", self.path), value))
        })
    }

    /// Removes keys of this end, e.g. the ring references of a closed connection, and writes its state, unless this
    /// end's node is another device's, as [`DeviceEnd::switch_state_after`] tells it. Missing keys are no error.
    pub fn withdraw_after(
        &self,
        client: &mut Client,
        last: XenbusState,
        keys: &[&str],
        state: XenbusState,
    ) -> Result<bool> {
        self.change_after(client, last, state, |tx| {
            keys.iter().try_for_each(|key| match tx.rm(&format!("{}/{key}", self.path)) {
                Err(e) if e.store_error() == Some(XsError::ENOENT) => Ok(()),
                done => done,
            })
        })
    }

    /// Carries out `change` and writes the state in one transaction, unless this end's node is absent or another
    /// device's.
    fn change_after(
        &self,
        client: &mut Client,
        last: XenbusState,
        state: XenbusState,
        change: impl Fn(&mut Transaction<'_>) -> Result<()>,
    ) -> Result<bool> {
        client.transaction(|tx| match read_state(tx, &self.path)? {
            None => Ok(false),
            Some(XenbusState::Initialising) if last != XenbusState::Initialising => Ok(false),
            Some(found) => {
                change(tx)?;
                // Written only when it changes: every write fires the other end's watch.
                if found != state {
                    tx.write(&state_path(&self.path), state.as_text())?;
                }
                Ok(true)
            }
        })
    }

    /// Writes keys below this end's node and then its state, in one transaction: the other end sees all or none.
    /// `false`, and nothing is written, when this end's node is absent.
    pub fn publish(&self, client: &mut Client, keys: &Keys, state: XenbusState) -> Result<bool> {
        client.transaction(|tx| {
            if !tx.exists(&self.path)? {
                return Ok(false);
            }
            for (key, value) in keys.iter() {
                tx.write(&format!("{}/{key}", self.path), value)?;
            }
            // Written only when it changes: every write fires the other end's watch.
            if read_state(tx, &self.path)? != Some(state) {
                tx.write(&state_path(&self.path), state.as_text())?;
            }
            Ok(true)
        })
    }

    /// Removes keys of this end, e.g. the ring references of a closed connection. Missing keys are no error, nor is
    /// EACCES, which a guest gets when its whole node is removed: the node above it is dom0's.
    pub fn remove_keys<'k>(
        &self,
        client: &mut Client,
        keys: impl IntoIterator<Item = &'k str>,
    ) -> Result<()> {
        for key in keys {
            match client.rm(&format!("{}/{key}", self.path)) {
                Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Reads all keys of this end, the toolstack's among them.
    pub fn keys(&self, nodes: &mut impl Nodes) -> Result<Keys> {
        read_tree(nodes, &self.path)
    }

    /// Reads all keys of the other end, which are complete once it has written its state. Not to be used in a
    /// transaction: an other end that keeps writing would make it conflict on every attempt.
    pub fn other_keys(&self, nodes: &mut impl Nodes) -> Result<Keys> {
        read_tree(nodes, &self.other_path)
    }

    /// Watches the other end's state; every event carries the token, and a first one comes at once.
    ///
    /// # Errors
    /// EEXIST and E2BIG, as [`Client::watch`].
    pub fn watch_other(&self, client: &mut Client, token: &str) -> Result<()> {
        client.watch(&state_path(&self.other_path), token)
    }

    /// Removes the watch on the other end's state.
    ///
    /// # Errors
    /// ENOENT, as [`Client::unwatch`].
    pub fn unwatch_other(&self, client: &mut Client, token: &str) -> Result<()> {
        client.unwatch(&state_path(&self.other_path), token)
    }

    /// Reports an error as Linux's `xenbus_dev_error` does: in the log, and as `<errno> <text>` in the node
    /// [`DeviceEnd::error_path`], where toolstacks read it.
    pub fn error(&self, client: &mut Client, errno: i32, what: impl fmt::Display) {
        tracing::error!(device = self.path, errno, "{what}");
        let text = format!("{} {what}", errno.abs());
        // Nothing removes the error node of a device whose nodes were removed before.
        let written = client.transaction(|tx| match read_state(tx, &self.path)? {
            None => Ok(()),
            Some(_) => tx.write(&self.error_path(), &text),
        });
        // As in xenbus_dev_error, a failure to report is only logged.
        if let Err(error) = written {
            tracing::warn!(device = self.path, %error, "failed to write the error node");
        }
    }

    /// Reports an error and writes the state Closing, as Linux's `xenbus_dev_fatal` does.
    pub fn fatal(&self, client: &mut Client, errno: i32, what: impl fmt::Display) -> Result<bool> {
        self.error(client, errno, what);
        self.switch_state(client, XenbusState::Closing)
    }

    /// Removes the error that this end has reported, e.g. once the device is connected.
    ///
    /// # Errors
    /// As [`remove_error`].
    pub fn clear_error(&self, client: &mut Client) -> Result<()> {
        match client.exists(&self.error_path()) {
            Ok(true) => client.transaction(|tx| remove_error(tx, &self.path)),
            Ok(false) => Ok(()),
            Err(e) if e.store_error() == Some(XsError::EACCES) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The node for error reports: `/local/domain/<own>/error/<rest of this end's path>/error`.
    pub fn error_path(&self) -> String {
        format!("{}/error", error_directory(&self.path))
    }
}

fn state_path(path: &str) -> String {
    format!("{path}/{}", key::STATE)
}

/// Reads the state below a node; `None` when it is absent or unreadable.
fn read_state(nodes: &mut impl Nodes, path: &str) -> Result<Option<XenbusState>> {
    match nodes.read_text(&state_path(path)) {
        Ok(text) => Ok(Some(text.parse().unwrap_or_default())),
        Err(e) if matches!(e.store_error(), Some(XsError::ENOENT | XsError::EACCES)) => Ok(None),
        Err(e) => Err(e),
    }
}
