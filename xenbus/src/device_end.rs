//! One end of a device: its own node, the other end's node, and their states and keys.

use std::fmt;

use ring_abi::DomId;
use ring_abi::xenbus::key;

use super::device::Device;
use super::error_node::{error_directory, remove_error, shortened};
use super::keys::Keys;
use super::read_tree::{read_known, read_tree, readable};
use crate::XenbusState;
use xenstore::XsError;
use xenstore::client::{Request, Result};
use xenstore::{Client, Error, Nodes, Transaction};

/// One end of a device: the node this end writes, and the node it reads the other end from (Linux's `nodename` and
/// `otherend` of `struct xenbus_device`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEnd {
    path: String,
    other_path: String,
    other_id: DomId,
    is_back: bool,
}

/// Attempts of a backend's transactions: a frontend, which is not trusted, can make each of them conflict.
const ATTEMPTS: u32 = 3;

/// What has to be in the store for [`DeviceEnd::change`], as it was read before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<'e> {
    /// Which device it is, where its backend has said so ([`DeviceEnd::instance`]).
    pub instance: Option<&'e str>,
    /// This end's state, as this end has written it last.
    pub own: XenbusState,
    /// Keys of this end, e.g. those of the toolstack.
    pub own_keys: Option<&'e Keys>,
    /// The other end's state; `None` for any.
    pub other: Option<XenbusState>,
    /// Keys of the other end, e.g. those of its rings.
    pub other_keys: Option<&'e Keys>,
    /// The other end's keys of which these are the names, and no others of these: where one that is missing matters.
    pub other_known: Option<(&'e Keys, &'e [&'e str])>,
}

/// What [`DeviceEnd::change`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Change<'c> {
    /// The new state.
    pub state: XenbusState,
    /// Writes the state even where it does not change, which fires the other end's watch.
    pub rewrite: bool,
    /// Keys that are written.
    pub keys: &'c Keys,
    /// Keys that are removed, if they are there.
    pub removed: &'c [&'c str],
    /// An errno and a text, which are reported as [`DeviceEnd::error`] does, but where nothing is written.
    pub error: Option<(i32, &'c str)>,
}

impl DeviceEnd {
    /// The frontend of a device, at libxl's paths.
    pub fn front(device: &Device) -> DeviceEnd {
        DeviceEnd {
            path: device.front_path(),
            other_path: device.back_path(),
            other_id: device.back,
            is_back: false,
        }
    }

    /// The backend of a device, at libxl's paths.
    pub fn back(device: &Device) -> DeviceEnd {
        DeviceEnd {
            path: device.back_path(),
            other_path: device.front_path(),
            other_id: device.front,
            is_back: true,
        }
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
        let keys = [format!("{path}/{other}"), format!("{path}/{id}")];
        let mut found = nodes.read_each(&keys)?.into_iter().map(|reply| reply.map(lossy));
        let mut next = || found.next().unwrap_or(Err(Error::Closed));
        let (other_path, found_id) = (next()?, next());
        let [other_key, id_key] = keys;
        if !other_path.starts_with('/') {
            return Err(Error::value(other_key, &other_path, "an absolute path"));
        }
        let found_id = found_id?;
        let other_id = found_id.trim_ascii().parse();
        let other_id = other_id.map_err(|_| Error::value(id_key, &found_id, "a domain's number"))?;
        let is_back = other == key::FRONTEND;
        Ok(DeviceEnd { path: path.to_owned(), other_path, other_id, is_back })
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

    /// Writes keys and a state of this end, and removes the keys of these names, in one transaction, if the store is as
    /// `expected`. `false`, and nothing is written, where it is not: the device is gone, another one has its path, or one of
    /// its ends has changed its state, and what to do has to be decided anew; nor is anything written while the other end
    /// goes on writing what was `expected`. An error that cannot be reported does not keep the rest from being written.
    pub fn change(&self, client: &mut Client, expected: &Expected<'_>, change: &Change<'_>) -> Result<bool> {
        let text = change.error.map(|(errno, what)| error_text(errno, what));
        let written = client.transaction_within(self.attempts(), |tx| {
            if !self.is_as(tx, expected)? {
                return Ok(false);
            }
            // Before the state, for whoever waits for that.
            if let Some(text) = &text {
                report(tx, &self.error_path(), text)?;
            }
            self.write(tx, expected.own, change)?;
            Ok(true)
        });
        let written = match written {
            Err(Error::Conflict { .. }) => false,
            written => written?,
        };
        match change.error {
            Some((errno, what)) if written => tracing::error!(device = self.path, errno, "{what}"),
            Some((errno, what)) => {
                tracing::warn!(device = self.path, errno, "{what}; but the device has changed")
            }
            None => {}
        }
        Ok(written)
    }

    /// Removes and writes what a change says, the state last, where this end has the state `own`.
    fn write(&self, tx: &mut Transaction<'_>, own: XenbusState, change: &Change<'_>) -> Result<()> {
        let removals = change.removed.iter().map(|key| Request::rm(&format!("{}/{key}", self.path)));
        let mut requests = removals.collect::<Result<Vec<_>>>()?;
        for (path, value) in self.values(change.keys) {
            requests.push(Request::write(&path, value)?);
        }
        // Written only when it changes: every write fires the other end's watch.
        if change.rewrite || change.state != own {
            requests.push(Request::write(&state_path(&self.path), change.state.as_text())?);
        }
        let mut replies = tx.request_each(&requests)?.into_iter();
        // One that is missing is no error.
        replies.by_ref().take(change.removed.len()).try_for_each(|reply| readable(reply).map(drop))?;
        replies.try_for_each(|reply| reply.map(drop))
    }

    /// The paths of keys of this end, and their values.
    fn values<'k>(&self, keys: &'k Keys) -> impl Iterator<Item = (String, &'k str)> {
        keys.iter().map(|(key, value)| (format!("{}/{key}", self.path), value))
    }

    fn attempts(&self) -> u32 {
        if self.is_back { ATTEMPTS } else { Transaction::ATTEMPTS }
    }

    fn is_as(&self, nodes: &mut impl Nodes, expected: &Expected<'_>) -> Result<bool> {
        let own_keys = expected.own_keys.into_iter().flat_map(|keys| self.values(keys));
        let of_other = |(key, value)| (format!("{}/{key}", self.other_path), value);
        let other_keys = expected.other_keys.into_iter().flat_map(|keys| keys.iter().map(of_other));
        let keys: Vec<(String, &str)> = own_keys.chain(other_keys).collect();
        // Nothing else is read: what is read in a transaction makes it conflict.
        let mut paths = vec![state_path(&self.path)];
        paths.extend(expected.instance.map(|_| self.instance_path()));
        paths.extend(expected.other.map(|_| state_path(&self.other_path)));
        paths.extend(keys.iter().map(|(path, _)| path.clone()));
        let mut found = nodes.read_each(&paths)?.into_iter().map(text);
        let mut next = || found.next().unwrap_or(Ok(None));
        let state = |text: &str| text.parse::<XenbusState>().unwrap_or_default();
        let own = next()?;
        if own.as_deref().map_or(XenbusState::Unknown, state) != expected.own
            || own.is_none() && !exists(nodes, &self.path)?
            || expected.instance.is_some() && next()?.as_deref() != expected.instance
        {
            return Ok(false);
        }
        if let Some(wanted) = expected.other
            && next()?.as_deref().map_or(XenbusState::Closed, state) != wanted
        {
            return Ok(false);
        }
        for (_, value) in keys {
            if next()?.as_deref() != Some(value) {
                return Ok(false);
            }
        }
        match expected.other_known {
            Some((keys, known)) => Ok(self.known_keys(nodes, known)? == *keys),
            None => Ok(true),
        }
    }

    /// Reads which device this is, as its backend has written it: `None` where it has not yet, or never does.
    pub fn instance(&self, nodes: &mut impl Nodes) -> Result<Option<String>> {
        readable(nodes.read_text(&self.instance_path()))
    }

    pub(crate) fn instance_path(&self) -> String {
        let backend = if self.is_back { &self.path } else { &self.other_path };
        format!("{backend}/{}", key::INSTANCE)
    }

    /// Writes keys below this end's node and then its state, in one transaction: the other end sees all or none.
    /// `false`, and nothing is written, when this end's node is absent.
    pub fn publish(&self, client: &mut Client, keys: &Keys, state: XenbusState) -> Result<bool> {
        client.transaction(|tx| {
            if !tx.exists(&self.path)? {
                return Ok(false);
            }
            tx.write_each(self.values(keys))?;
            // Written only when it changes: every write fires the other end's watch.
            if read_state(tx, &self.path)? != Some(state) {
                tx.write(&state_path(&self.path), state.as_text())?;
            }
            Ok(true)
        })
    }

    /// Reads all keys of this end, the toolstack's among them.
    pub fn keys(&self, nodes: &mut impl Nodes) -> Result<Keys> {
        read_tree(nodes, &self.path)
    }

    /// Reads those keys of the other end that are `known`, as [`read_known`]: what else is there costs nothing.
    pub fn known_keys(&self, nodes: &mut impl Nodes, known: &[&str]) -> Result<Keys> {
        read_known(nodes, &self.other_path, known)
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
        let text = error_text(errno, what);
        // Nothing removes the error node of a device whose nodes were removed before.
        let written = client.transaction_within(self.attempts(), |tx| match read_state(tx, &self.path)? {
            None => Ok(()),
            Some(_) => tx.write(&self.error_path(), &text),
        });
        // As in xenbus_dev_error, a failure to report is only logged.
        if let Err(error) = written {
            tracing::warn!(device = self.path, %error, "failed to write the error node");
        }
    }

    /// Removes the error that this end has reported, if any, e.g. once the device is connected. A failure is only logged, as
    /// in [`DeviceEnd::error`].
    pub fn clear_error(&self, client: &mut Client) {
        let removed = match client.exists(&self.error_path()) {
            Ok(true) => client.transaction_within(self.attempts(), |tx| remove_error(tx, &self.path)),
            Ok(false) => Ok(()),
            Err(e) if e.store_error() == Some(XsError::EACCES) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(error) = removed {
            tracing::warn!(device = self.path, %error, "failed to remove the error node");
        }
    }

    /// The node for error reports: `/local/domain/<own>/error/<rest of this end's path>/error`.
    pub fn error_path(&self) -> String {
        format!("{}/error", error_directory(&self.path))
    }
}

pub(crate) fn state_path(path: &str) -> String {
    format!("{path}/{}", key::STATE)
}

/// Reads the state below a node; `None` when it is absent or unreadable.
fn read_state(nodes: &mut impl Nodes, path: &str) -> Result<Option<XenbusState>> {
    state_of(nodes.read(&state_path(path)))
}

/// The state that a reply says; `None` where its node is absent or unreadable, Unknown where it is no state.
pub(crate) fn state_of(reply: Result<Vec<u8>>) -> Result<Option<XenbusState>> {
    Ok(text(reply)?.map(|text| text.parse().unwrap_or_default()))
}

/// As `xenbus_dev_error` writes it.
fn error_text(errno: i32, what: impl fmt::Display) -> String {
    shortened(&format!("{} {what}", errno.abs())).to_owned()
}

/// Writes an error's text. A store that refuses it, for a quota for instance, is only logged, as by `xenbus_dev_error`.
fn report(nodes: &mut impl Nodes, path: &str, text: &str) -> Result<()> {
    match nodes.write(path, text) {
        Err(error @ Error::Store { .. }) if error.store_error() != Some(XsError::EAGAIN) => {
            tracing::warn!(path, %error, "failed to write the error node");
            Ok(())
        }
        written => written,
    }
}

/// Whether a node is there and readable.
pub(crate) fn exists(nodes: &mut impl Nodes, path: &str) -> Result<bool> {
    Ok(readable(nodes.read(path))?.is_some())
}

/// The value that a reply says, as text; `None` for a node that is absent or unreadable.
pub(crate) fn text(reply: Result<Vec<u8>>) -> Result<Option<String>> {
    Ok(readable(reply)?.map(lossy))
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}
