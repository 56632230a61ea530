//! A store whose connections the test cuts.

use event_loop::{Connector, Stream};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Connects to a domain's store, until the test refuses that.
pub struct LossyStore {
    store: Arc<dyn Connector>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The open connections' sockets.
    connections: BTreeMap<u64, OwnedFd>,
    last: u64,
    refused: bool,
}

impl LossyStore {
    /// A store that behaves as `store` does, for now.
    pub fn new(store: Arc<dyn Connector>) -> Arc<LossyStore> {
        Arc::new(LossyStore { store, state: Arc::default() })
    }

    /// Cuts all connections, and refuses new ones until [`LossyStore::accept`].
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.refused = true;
        for connection in std::mem::take(&mut state.connections).into_values() {
            shutdown(connection.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }

    /// Whether a connection that was made since the last cut is open.
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
        state.last += 1;
        let number = state.last;
        state.connections.insert(number, stream.as_fd().try_clone_to_owned()?);
        Ok(Box::new(Connection { stream, number, state: self.state.clone() }))
    }
}

/// A connection, which is forgotten once it is dropped.
struct Connection {
    stream: Box<dyn Stream>,
    number: u64,
    state: Arc<Mutex<State>>,
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.state.lock().unwrap().connections.remove(&self.number);
    }
}
