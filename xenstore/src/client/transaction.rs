// Not a core: does I/O or calls a hypervisor.

//! A transaction: operations that become visible to other clients all at once or not at all.

use std::thread;
use std::time::Duration;

use ring_abi::xs_wire::{MessageType, XsError};

use super::Client;
use super::error::{Error, Result};
use super::nodes::Nodes;
use super::request::Request;

/// An open transaction. The operations of [`Nodes`] made on it are part of it.
pub struct Transaction<'c> {
    client: &'c mut Client,
    id: u32,
}

impl Transaction<'_> {
    /// Attempts of [`Client::transaction`]. Each that fails means that another client's write succeeded, so that this
    /// many in a row mean a peer that writes endlessly.
    pub const ATTEMPTS: u32 = 100;
}

impl Nodes for Transaction<'_> {
    fn request(&mut self, kind: MessageType, path: &str, payload: &[u8]) -> Result<Vec<u8>> {
        self.client.connection.request(kind, self.id, path, payload)
    }

    fn request_each(&mut self, requests: &[Request]) -> Result<Vec<Result<Vec<u8>>>> {
        self.client.connection.request_each(self.id, requests)
    }
}

/// How long a transaction is waited for while its domain has as many as it may have (ENOSPC): each device of a guest has a connection
/// of its own, and many connect at the same time. The pauses are about a second in all.
const PAUSES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

pub(super) fn run<R>(
    client: &mut Client,
    attempts: u32,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<R>,
) -> Result<R> {
    for _ in 0..attempts {
        match attempt(client, &mut body) {
            Err(e) if e.store_error() == Some(XsError::EAGAIN) => {}
            done => return done,
        }
    }
    Err(Error::Conflict { attempts })
}

fn attempt<R>(client: &mut Client, body: &mut impl FnMut(&mut Transaction<'_>) -> Result<R>) -> Result<R> {
    let id = start(client)?;
    let mut transaction = Transaction { client, id };
    let outcome = body(&mut transaction);
    let commit: &[u8] = if outcome.is_ok() { b"T\0" } else { b"F\0" };
    let ended = transaction.request(MessageType::TransactionEnd, "", commit);
    match outcome {
        Ok(value) => ended.map(|_| value),
        // The error of `body` matters more than that of the request that ends the transaction.
        Err(e) => Err(e),
    }
}

/// Starts a transaction, which others of the same domain may have to end before.
fn start(client: &mut Client) -> Result<u32> {
    let mut pauses = (0..PAUSES).map(|n| FIRST_PAUSE * (1 << n));
    loop {
        let started = client.number(MessageType::TransactionStart, &[""]);
        match started {
            Err(e) if e.store_error() == Some(XsError::ENOSPC) => match pauses.next() {
                Some(pause) => thread::sleep(pause),
                None => return Err(e),
            },
            started => return started,
        }
    }
}
