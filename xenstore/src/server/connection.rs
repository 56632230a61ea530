//! One connection: its undecoded input, unsent output, open transactions and number of watches.

use std::collections::BTreeMap;

use super::outbox::Outbox;
use super::quota::{Quota, Quotas};
use super::transaction::Transaction;
use super::tree::Tree;
use super::usage::Usage;
use crate::wire::Decoder;
use ring_abi::DomId;

/// Unsent bytes at which no further request is read, dom0's neither.
const PAUSE_AT: usize = 256 * 1024;
/// Unsent bytes of all connections of a guest at which the one with most of them is closed.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
/// Unsent bytes and events at which a connection of dom0 is closed.
const MAX_BYTES_DOM0: usize = 16 * 1024 * 1024;
const MAX_EVENTS_DOM0: usize = 65536;

pub(super) struct Connection {
    pub(super) domid: DomId,
    pub(super) decoder: Decoder,
    pub(super) outbox: Outbox,
    pub(super) transactions: BTreeMap<u32, Transaction>,
    next_tx: u32,
    pub(super) watches: usize,
    /// Bytes held by the watches.
    pub(super) watch_bytes: usize,
    /// What the domain's usage counts of this connection.
    pub(super) settled: Usage,
    /// It waits for its turn, as it has a whole request.
    pub(super) queued: bool,
    /// The caller is to look at its output.
    pub(super) woken: bool,
    /// Nothing more is read from it or sent to it; the reactor drops it.
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
            settled: Usage::default(),
            queued: false,
            woken: false,
            closed: false,
        }
    }

    /// Starts a transaction and returns its number, which is never 0.
    pub(super) fn begin(&mut self, tree: &Tree, now: u64) -> u32 {
        while self.next_tx == 0 || self.transactions.contains_key(&self.next_tx) {
            self.next_tx = self.next_tx.wrapping_add(1);
        }
        let id = self.next_tx;
        self.next_tx = id.wrapping_add(1);
        self.transactions.insert(id, Transaction::new(tree, now));
        id
    }

    /// Bytes held by watches and open transactions.
    pub(super) fn held(&self) -> usize {
        self.watch_bytes + self.transactions.values().map(Transaction::held).sum::<usize>()
    }

    /// What it uses now.
    pub(super) fn usage(&self) -> Usage {
        Usage {
            watches: self.watches,
            transactions: self.transactions.len(),
            held: self.held(),
            events: self.outbox.events(),
            bytes: self.outbox.bytes(),
        }
    }

    /// Whether a further request may be executed: few enough replies are unsent.
    pub(super) fn may_proceed(&self, quotas: &Quotas) -> bool {
        let within_quota =
            self.domid == DomId::DOM0 || !quotas.exceeded(Quota::Outstanding, self.outbox.replies() + 1);
        !self.closed && within_quota && self.outbox.bytes() < PAUSE_AT
    }

    /// Whether this connection of dom0 has too many events unsent, so that it has to be closed.
    pub(super) fn overflows(&self) -> bool {
        self.outbox.events() > MAX_EVENTS_DOM0 || self.outbox.bytes() > MAX_BYTES_DOM0
    }

    /// Drops all state and refuses further input.
    pub(super) fn close(&mut self) {
        let Connection { domid, settled, queued, woken, .. } = *self;
        *self = Connection { settled, queued, woken, closed: true, ..Connection::new(domid) };
    }
}
