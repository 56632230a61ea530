//! A guest that takes as much of a store as it is given: many connections, each with as many watches and transactions as are
//! granted, and requests without end on all of them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use ring_abi::xs_wire::MessageType;
use xenstore::server::StoreHandle;
use xenstore::wire::Message;
use xenstore::{Client, DomId, Error, Nodes, XsError};

use crate::common::bounded;

/// Connections that a guest opens.
pub(crate) const CONNECTIONS: usize = 64;

/// What a guest was granted over all its connections.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    pub(crate) watches: usize,
    pub(crate) transactions: usize,
    /// Writes that were accepted in these transactions.
    pub(crate) writes: usize,
}

/// A guest's connections.
pub(crate) struct Attacker {
    domid: DomId,
    streams: Vec<UnixStream>,
}

impl Attacker {
    pub(crate) fn new(store: &StoreHandle, domid: u16) -> Attacker {
        let connect = |_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            store.introduce(DomId(domid), theirs).unwrap();
            ours
        };
        Attacker { domid: DomId(domid), streams: (0..CONNECTIONS).map(connect).collect() }
    }

    /// Sets as many watches as it may on its home, opens as many transactions as it may, and writes in each as much as it may.
    pub(crate) fn take_all(&self) -> Granted {
        let mut granted = Granted { watches: self.take_watches(), ..Granted::default() };
        for (n, stream) in self.streams.iter().enumerate() {
            let mut client = self.client(n);
            for _ in 0..20 {
                match client.request(MessageType::TransactionStart, "", b"\0") {
                    Ok(id) => {
                        granted.transactions += 1;
                        let id = std::str::from_utf8(&id).unwrap().trim_end_matches('\0').parse().unwrap();
                        granted.writes += fill(stream, id);
                    }
                    Err(Error::Store { error: XsError::ENOSPC, .. }) => break,
                    Err(e) => panic!("{e}"),
                }
            }
        }
        granted
    }

    /// Sets as many watches as it may on its home, on all connections; their number.
    pub(crate) fn take_watches(&self) -> usize {
        let mut set = 0;
        for n in 0..CONNECTIONS {
            let mut client = self.client(n);
            for token in 0..200 {
                match client.watch(&format!("/local/domain/{}", self.domid), &token.to_string()) {
                    Ok(()) => set += 1,
                    Err(e) => {
                        assert!(matches!(e.store_error(), Some(XsError::E2BIG | XsError::ENOMEM)), "{e}");
                        break;
                    }
                }
            }
        }
        set
    }

    /// A client over one of the connections.
    pub(crate) fn client(&self, n: usize) -> Client {
        bounded(Client::new(self.streams[n].try_clone().unwrap()))
    }

    /// Sends requests on all connections, and reads what comes, until the flood is dropped.
    pub(crate) fn flood(self, request: Message) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let moved = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), moved.clone());
        let thread = std::thread::spawn(move || {
            let batch = request.to_bytes().repeat(64);
            let mut at = vec![0; self.streams.len()];
            self.streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            while !stopped.load(Ordering::Relaxed) {
                for (stream, at) in self.streams.iter().zip(&mut at) {
                    push(stream, &batch, at, &counted);
                }
            }
        });
        Flood { stop, moved, thread: Some(thread) }
    }
}

/// A running flood.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Bytes sent and received so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends and receives what is possible without waiting. A connection that the store has closed stays silent.
fn push(mut stream: &UnixStream, batch: &[u8], at: &mut usize, moved: &AtomicU64) {
    if let Ok(n) = stream.write(&batch[*at..]) {
        *at = (*at + n) % batch.len();
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
    let mut bytes = [0; 65536];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Writes 2,000 bytes to many keys in a transaction until one is refused; the number of writes.
fn fill(mut stream: &UnixStream, tx: u32) -> usize {
    for n in 0..500 {
        let payload = [format!("key-{n}\0").as_bytes(), &[b'x'; 2000]].concat();
        stream.write_all(&Message::new(MessageType::Write, n, tx, payload).to_bytes()).unwrap();
        if reply_kind(stream) == Some(MessageType::Error) {
            return n as usize;
        }
    }
    500
}

/// The type of the next reply; events before it are skipped.
fn reply_kind(mut stream: &UnixStream) -> Option<MessageType> {
    loop {
        let mut header = [0; 16];
        match stream.read_exact(&mut header) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return None,
            other => other.unwrap(),
        }
        let header = ring_abi::xs_wire::Header::from_bytes(&header);
        stream.read_exact(&mut vec![0; header.len as usize]).unwrap();
        match MessageType::from_u32(header.kind) {
            Some(MessageType::WatchEvent) => {}
            kind => return kind,
        }
    }
}
