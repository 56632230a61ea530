//! One connection: its undecoded input, unsent output, open transactions and number of watches.

use std::collections::BTreeMap;

use super::outbox::Outbox;
use super::quota::{Quota, Quotas};
use super::transaction::Transaction;
use super::tree::Tree;
use crate::wire::Decoder;
use ring_abi::DomId;

/// Unsent bytes at which no further request is read, dom0's neither.
const PAUSE_AT: usize = 256 * 1024;
/// Unsent bytes at which a guest's connection is closed. Only events can be so many.
const MAX_BYTES: usize = 1024 * 1024;
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
        self.watch_bytes + self.transactions.values().map(|t| t.held).sum::<usize>()
    }

    /// Whether a further request may be read: few enough replies are unsent.
    pub(super) fn wants_input(&self, quotas: &Quotas) -> bool {
        let within_quota =
            self.domid == DomId::DOM0 || !quotas.exceeded(Quota::Outstanding, self.outbox.replies() + 1);
        !self.closed && within_quota && self.outbox.bytes() < PAUSE_AT
    }

    /// Whether too many events are unsent, so that the connection has to be closed.
    pub(super) fn overflows(&self, quotas: &Quotas) -> bool {
        let events = self.outbox.events();
        let bytes = self.outbox.bytes();
        match self.domid {
            DomId::DOM0 => events > MAX_EVENTS_DOM0 || bytes > MAX_BYTES_DOM0,
            _ => quotas.exceeded(Quota::Events, events) || bytes > MAX_BYTES,
        }
    }

    /// Drops all state and refuses further input.
    pub(super) fn close(&mut self) {
        *self = Connection { closed: true, ..Connection::new(self.domid) };
    }
}
