//! Shared code of the tests with a running store.
#![allow(dead_code)] // each test file uses a part of it

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use xenstore::server::{Config, Store};
use xenstore::{Client, DomId, WatchEvent};

/// Timeout of replies and events.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// A running store with its socket in a temporary directory.
pub(crate) struct Running {
    pub(crate) store: Store,
    dir: tempfile::TempDir,
}

impl Running {
    pub(crate) fn new() -> Running {
        Running::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::at(dir.path().join("xenstored.sock"));
        change(&mut config);
        Running { store: Store::spawn(config).unwrap(), dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("xenstored.sock")
    }

    /// Makes a client of dom0, over the listening socket.
    pub(crate) fn dom0(&self) -> Client {
        bounded(Client::open_unix(self.socket()).unwrap())
    }

    /// Makes a domain's connection and returns the domain's end.
    pub(crate) fn stream(&self, domid: u16) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.store.introduce(DomId(domid), theirs).unwrap();
        ours
    }

    pub(crate) fn domain(&self, domid: u16) -> Client {
        bounded(Client::new(self.stream(domid)))
    }
}

pub(crate) fn bounded(mut client: Client) -> Client {
    client.set_reply_timeout(Some(BOUND));
    client
}

/// The next event, which must come.
pub(crate) fn event(client: &mut Client) -> WatchEvent {
    client.wait_event(Some(BOUND)).unwrap().expect("a watch event")
}

/// All events of earlier requests: a request's events are sent before its reply.
pub(crate) fn events(client: &mut Client) -> Vec<(String, String)> {
    client.get_domain_path(DomId::DOM0).unwrap();
    let mut all = Vec::new();
    while let Some(e) = client.poll_event().unwrap() {
        all.push((e.path, e.token));
    }
    all
}
