//! One connection: what came in and is no request yet, what has not gone out, and what it has open.

use std::collections::BTreeMap;

use super::outbox::Outbox;
use super::quota::{Quota, Quotas};
use super::transaction::Transaction;
use super::tree::Tree;
use crate::DomId;
use crate::wire::Decoder;

/// Unsent bytes at which no further request is read, whoever it is.
const PAUSE_AT: usize = 256 * 1024;
/// Unsent bytes at which a guest's connection is closed: only events can bring it there.
const MOST_BYTES: usize = 1024 * 1024;
/// The same for dom0's tools, and the most events they may leave waiting.
const MOST_BYTES_DOM0: usize = 16 * 1024 * 1024;
const MOST_EVENTS_DOM0: usize = 65536;

pub(super) struct Connection {
    pub(super) domid: DomId,
    pub(super) decoder: Decoder,
    pub(super) outbox: Outbox,
    pub(super) transactions: BTreeMap<u32, Transaction>,
    next_tx: u32,
    /// Watches set, and the bytes they hold.
    pub(super) watches: usize,
    pub(super) watch_bytes: usize,
    /// Nothing more is taken from it or sent to it; the shell will end it.
    pub(super) closed: bool,
}

impl Connection {
    pub(super) fn new(domid: DomId) -> Connection {
        Connection {
            domid,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            transactions: BTreeMap::new(),
            next_tx: 1,
            watches: 0,
            watch_bytes: 0,
            closed: false,
        }
    }

    /// Opens a transaction and gives its number, which is never 0.
    pub(super) fn begin(&mut self, tree: &Tree, now: u64) -> u32 {
        while self.next_tx == 0 || self.transactions.contains_key(&self.next_tx) {
            self.next_tx = self.next_tx.wrapping_add(1);
        }
        let id = self.next_tx;
        self.next_tx = id.wrapping_add(1);
        self.transactions.insert(id, Transaction::new(tree, now));
        id
    }

    /// Bytes held in watches and open transactions.
    pub(super) fn held(&self) -> usize {
        self.watch_bytes + self.transactions.values().map(|t| t.held).sum::<usize>()
    }

    /// A further request may be read: those answered have been taken.
    pub(super) fn wants_input(&self, quotas: &Quotas) -> bool {
        let room = self.domid == 0 || !quotas.exceeded(Quota::Outstanding, self.outbox.replies() + 1);
        !self.closed && room && self.outbox.bytes() < PAUSE_AT
    }

    /// Too many events wait: whoever does not take them cannot be told everything any more.
    pub(super) fn overflows(&self, quotas: &Quotas) -> bool {
        let (events, bytes) = (self.outbox.events(), self.outbox.bytes());
        match self.domid {
            0 => events > MOST_EVENTS_DOM0 || bytes > MOST_BYTES_DOM0,
            _ => quotas.exceeded(Quota::Events, events) || bytes > MOST_BYTES,
        }
    }

    /// Forgets everything and takes no more.
    pub(super) fn close(&mut self) {
        *self = Connection { closed: true, ..Connection::new(self.domid) };
    }
}
