//! The store itself. [`Core`] is the whole of it as a value: bytes in, bytes out, no I/O, no clock, no thread.
//! [`Store`] is the shell that runs one behind sockets.
//!
//! It does what xenstored does (`docs/misc/xenstore.txt` and the C implementation of Xen 4.17 and later), with
//! these differences:
//!
//! * Domains come with a socket instead of a ring page, by [`Core::introduce`]. An INTRODUCE request only notes
//!   that the domain is there.
//! * A transaction conflicts when what it read or wrote has changed, not when a node beside it was added.
//! * A connection that leaves more watch events waiting than the quota `watch-events` allows (for dom0's tools:
//!   65536, or 16 MiB) is closed, where xenstored loses events silently. Equal events are merged while they wait.
//! * Children are listed in the order of their names.
//! * A permission may name a domain that is not there yet.
//!
//! When a domain is released its watches and transactions are dropped, the nodes it owns are removed, and no list
//! names it any more (a later domain of the same number must not inherit anything), as in xenstored.
//! `/local/domain/<domid>`, which dom0 owns, is the toolstack's to remove.

mod access;
mod connection;
mod control;
mod dispatch;
mod domain;
mod node_ops;
mod outbox;
mod path;
mod quota;
mod run;
mod transaction;
mod tree;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use ring_abi::xs_wire::{MessageType, PAYLOAD_MAX, XsError};

use crate::DomId;
use crate::wire::Message;
use access::Who;
use connection::Connection;
use domain::Domain;
use node_ops::Effect;
use path::Path;
pub use quota::{Quota, Quotas};
pub use run::{Config, Store, StoreHandle};
use tree::{Generation, Tree};
use watch::{Event, Watches};

/// Fires when a domain is introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// Fires when a domain is released.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// Most connections of one domain.
const MOST_CONNECTIONS: usize = 64;

/// A connection's number; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// The store as a value.
///
/// A shell moves bytes: what a connection sent goes to [`Core::input`] while [`Core::wants_input`]; what
/// [`Core::output`] gives is sent and acknowledged with [`Core::sent`]. After any call [`Core::take_woken`] names
/// the connections that have something to send, or are [`Core::closed`].
pub struct Core {
    tree: Tree,
    generation: Generation,
    /// Changes made to the tree, and how many there will be when old transactions are next looked for.
    changes: u64,
    next_expiry: u64,
    watches: Watches,
    connections: BTreeMap<ConnId, Connection>,
    domains: BTreeMap<DomId, Domain>,
    quotas: Quotas,
    next_conn: u64,
    woken: BTreeSet<ConnId>,
}

impl Core {
    /// An empty store. `quotas` are those domains start with.
    pub fn new(quotas: Quotas) -> Core {
        Core {
            tree: Tree::new(),
            generation: 1,
            changes: 0,
            next_expiry: 0,
            watches: Watches::default(),
            connections: BTreeMap::new(),
            domains: BTreeMap::from([(0, Domain::introduced(0, quotas))]),
            quotas,
            next_conn: 1,
            woken: BTreeSet::new(),
        }
    }

    /// A further connection of dom0's: may do everything.
    pub fn connect(&mut self) -> ConnId {
        self.add(0)
    }

    /// A domain's connection. It may have up to 64, as a domain that is a process has no kernel to share one among
    /// its drivers; the quotas of watches, transactions and waiting events hold for each. The first fires
    /// `@introduceDomain`.
    ///
    /// # Errors
    /// EINVAL for dom0 and for numbers that are no real domain's, ENOSPC for one connection too many.
    pub fn introduce(&mut self, domid: DomId) -> Result<ConnId, XsError> {
        self.note_introduced(domid)?;
        if self.domains.get(&domid).is_some_and(|domain| domain.conns.len() >= MOST_CONNECTIONS) {
            return Err(XsError::ENOSPC);
        }
        let id = self.add(domid);
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.conns.insert(id);
        }
        Ok(id)
    }

    /// A domain is gone; see the module's text for what happens.
    ///
    /// # Errors
    /// ENOENT when it was not introduced, EINVAL for dom0.
    pub fn release(&mut self, domid: DomId) -> Result<(), XsError> {
        self.forget_domain(domid)
    }

    /// A connection has ended: its watches and transactions go.
    pub fn disconnect(&mut self, id: ConnId) {
        self.watches.remove_all(id);
        self.woken.remove(&id);
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(domain) = self.domains.get_mut(&connection.domid) {
            domain.conns.remove(&id);
        }
    }

    /// Takes bytes a connection sent, and does the requests they complete. At most these bytes and one message
    /// are held.
    pub fn input(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { return };
        connection.decoder.push(bytes);
        self.proceed(id);
    }

    /// More bytes may be read: the connection has taken enough of what it was sent.
    pub fn wants_input(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_some_and(|c| c.wants_input(&self.quotas_of(c.domid)))
    }

    /// The bytes to send next; empty when there are none.
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.connections.get(&id).map_or(&[], |c| c.outbox.front())
    }

    /// `n` bytes of [`Core::output`] were sent.
    pub fn sent(&mut self, id: ConnId, n: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outbox.advance(n);
        self.proceed(id);
    }

    /// The connection broke the protocol or does not take what it is sent; [`Core::disconnect`] it.
    pub fn closed(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_none_or(|c| c.closed)
    }

    /// The connections that have something to send or are closed, since this was last asked.
    pub fn take_woken(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.woken).into_iter().collect()
    }

    /// Bytes held of what a connection sent and is no request yet, and of what it has not taken yet.
    pub fn backlog(&self, id: ConnId) -> (usize, usize) {
        self.connections.get(&id).map_or((0, 0), |c| (c.decoder.pending(), c.outbox.bytes()))
    }

    fn add(&mut self, domid: DomId) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        self.connections.insert(id, Connection::new(domid));
        id
    }

    /// Does whole requests as long as the connection takes its replies.
    fn proceed(&mut self, id: ConnId) {
        while self.wants_input(id) {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match connection.decoder.take() {
                Ok(Some(request)) => self.answer(id, &request),
                Ok(None) => return,
                Err(e) => self.close(id, &e.to_string()),
            }
        }
    }

    fn answer(&mut self, id: ConnId, request: &Message) {
        let header = request.header;
        let outcome = self.handle(id, request).and_then(|answer| {
            let fits = answer.payload.len() <= PAYLOAD_MAX;
            fits.then_some(answer).ok_or(XsError::E2BIG)
        });
        let reply = |kind, payload| Message::new(kind, header.req_id, header.tx_id, payload);
        let (reply, event) = match outcome {
            Ok(answer) => (reply(answer.kind, answer.payload), answer.event),
            Err(e) => (reply(MessageType::Error, [e.name().as_bytes(), b"\0"].concat()), None),
        };
        if let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) {
            connection.outbox.reply(&reply);
            self.woken.insert(id);
        }
        self.deliver(event);
    }

    /// Tells of changes that were made to the tree.
    fn fire(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            self.changes += 1;
            let who = |id| self.connections.get(&id).map(|c: &Connection| self.who(c.domid));
            let events = self.watches.fired(&effect, who);
            self.deliver(events);
        }
        if self.changes >= self.next_expiry {
            self.next_expiry = self.changes + transaction::KEEP / 16;
            self.expire();
        }
    }

    /// Begins guests' transactions anew that keep a tree too old.
    fn expire(&mut self) {
        let guests = self.connections.values_mut().filter(|c| c.domid != 0);
        for transaction in guests.flat_map(|c| c.transactions.values_mut()) {
            if self.changes - transaction.began > transaction::KEEP {
                transaction.expire(&self.tree, self.changes);
            }
        }
    }

    fn deliver(&mut self, events: impl IntoIterator<Item = Event>) {
        for Event { conn: id, payload, special } in events {
            let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { continue };
            connection.outbox.event(payload, special);
            self.woken.insert(id);
            let quotas = self.quotas_of(self.connections[&id].domid);
            let outbox = &self.connections[&id].outbox;
            if self.connections[&id].overflows(&quotas) {
                let (events, bytes) = (outbox.events(), outbox.bytes());
                let why = format!("quota watch-events: {events} events wait, {bytes} bytes");
                self.close(id, &why);
            }
        }
    }

    /// Fires a special node's watches.
    fn fire_special(&mut self, name: &str) {
        let path = Path::fixed(name);
        let readable = self.tree.get(&path).map(|node| node.perms.clone()).into_iter().collect();
        self.fire([Effect { path, readable, removed: None }]);
    }

    fn close(&mut self, id: ConnId, why: &str) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { return };
        tracing::warn!(domid = connection.domid, connection = id.0, why, "xenstore connection closed");
        connection.close();
        self.watches.remove_all(id);
        self.woken.insert(id);
    }

    fn who(&self, domid: DomId) -> Who {
        Who { domid, target: self.domains.get(&domid).and_then(|d| d.target) }
    }

    fn quotas_of(&self, domid: DomId) -> Quotas {
        self.domains.get(&domid).map_or(self.quotas, |d| d.allowance.quotas)
    }
}
