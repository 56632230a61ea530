//! A device that is listed, and what is read of it: from the store, and from what dom0 answers.

use ring_abi::xenbus::key::STATE;
use xenbus::XenbusState;
use xenstore::{Client, DomId, Nodes};

use crate::control::client::{self, Served};
use crate::error::Result;

/// A device that is listed.
pub struct ListedDevice {
    /// Its number.
    pub id: u32,
    /// The backend's domain.
    pub backend_domid: DomId,
    /// The kind in the backend's path, which is not the frontend's for xl's `qdisk`.
    pub backend_kind: String,
    /// The backend's node.
    pub backend_path: String,
    /// The frontend's node.
    pub frontend_path: String,
    /// The node with the toolstack's keys of the backend.
    keys_path: String,
}

impl ListedDevice {
    /// A device with these nodes; `None` if the backend's is not the path of one.
    pub(super) fn new(id: u32, frontend: String, backend: String, keys: String) -> Option<ListedDevice> {
        let (domid, rest) = backend.strip_prefix("/local/domain/")?.split_once("/backend/")?;
        Some(ListedDevice {
            id,
            backend_domid: DomId(domid.parse().ok()?),
            backend_kind: rest.split_once('/')?.0.to_owned(),
            frontend_path: frontend,
            backend_path: backend,
            keys_path: keys,
        })
    }

    /// The frontend's state as a number; 0 if it has none.
    pub fn frontend_state(&self, store: &mut Client) -> Result<u8> {
        let state = store.read_opt(&format!("{}/{STATE}", self.frontend_path))?.unwrap_or_default();
        let state = std::str::from_utf8(&state).ok().and_then(|text| text.parse::<XenbusState>().ok());
        Ok(state.unwrap_or_default() as u8)
    }

    /// The value of a key that the toolstack wrote for the backend.
    pub fn key(&self, store: &mut Client, key: &str) -> Result<Option<String>> {
        match store.read_text(&format!("{}/{key}", self.keys_path)) {
            Err(e) if e.is_not_found() => Ok(None),
            value => Ok(Some(value?)),
        }
    }

    /// What the process that serves it knows of it.
    pub fn served<'s>(&self, served: &'s Served) -> Option<&'s client::Device> {
        let is_its = served.domid == Some(self.backend_domid.0);
        served.find(&self.backend_kind, self.id).filter(|_| is_its)
    }
}
