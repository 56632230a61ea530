//! A store whose connections the test cuts.

use event_loop::{Connector, Stream};
use nix::sys::socket::{Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Connects to a domain's store, until the test refuses that.
pub struct LossyStore {
    store: Arc<dyn Connector>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The connections' sockets.
    connections: Vec<OwnedFd>,
    refused: bool,
}

impl LossyStore {
    /// A store that behaves as `store` does, for now.
    pub fn new(store: Arc<dyn Connector>) -> Arc<LossyStore> {
        Arc::new(LossyStore { store, state: Mutex::default() })
    }

    /// Cuts all connections, and refuses new ones until [`LossyStore::accept`].
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.refused = true;
        for connection in state.connections.drain(..) {
            shutdown(connection.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }

    /// Whether a connection was made since the last cut.
    pub fn is_connected(&self) -> bool {
        !self.state.lock().unwrap().connections.is_empty()
    }

    /// Accepts connections again.
    pub fn accept(&self) {
        self.state.lock().unwrap().refused = false;
    }
}

impl Connector for LossyStore {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let mut state = self.state.lock().unwrap();
        if state.refused {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let stream = self.store.connect()?;
        state.connections.push(stream.as_fd().try_clone_to_owned()?);
        Ok(stream)
    }
}
