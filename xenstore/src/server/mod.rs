//! The store itself. [`Core`] is the store as a value: bytes in, bytes out, without I/O, clock or thread. [`Store`]
//! runs a core on a thread and serves it over sockets.
//!
//! The store behaves as xenstored (`docs/misc/xenstore.txt` and the C implementation of Xen 4.17 and later), with these
//! differences:
//!
//! * Domains connect by a socket instead of a ring page, with [`Core::introduce`]. An INTRODUCE request only marks the
//!   domain as introduced.
//! * A transaction conflicts when what it read or wrote has changed, not when a node beside it was added.
//! * Where a domain has more unread watch events than the quota `watch-events` allows, its connection with most of them is
//!   closed (one of dom0's tools: beyond 65536, or 16 MiB), where xenstored loses events silently. Equal unread events are
//!   merged.
//! * The quota `memory` counts the nodes that a transaction has of its own too, and a path of more than sixteen names counts
//!   as more than one node for `transaction-nodes`.
//! * Children are listed in the order of their names.
//! * A permission may name a domain that does not exist yet.
//!
//! When a domain is released its watches and transactions are dropped, the nodes it owns are removed, and its entries
//! are removed from the permissions of all others (a later domain of the same number must not inherit them), as in
//! xenstored. `/local/domain/<domid>`, which dom0 owns, is removed by the toolstack.

mod access;
mod children;
mod connection;
mod control;
mod dispatch;
mod domain;
mod journal;
mod keep;
mod node_ops;
mod outbox;
mod path;
mod quota;
mod record;
mod run;
mod transaction;
mod tree;
mod turns;
mod usage;
mod watch;

use std::collections::{BTreeMap, VecDeque};

use event_loop::LongestTurn;
use ring_abi::xs_wire::{MessageType, PAYLOAD_MAX, XsError};

use crate::wire::Message;
use access::Credentials;
use connection::Connection;
use domain::Domain;
pub use journal::Image;
/// For fuzz targets only.
#[cfg(fuzzing)]
#[doc(hidden)]
pub use journal::check as check_journal;
use keep::Journal;
use node_ops::Effect;
use path::Path;
pub use quota::{Quota, Quotas};
use ring_abi::DomId;
pub use run::{Config, Lease, Store, StoreHandle};
use tree::{Generation, Tree};
use turns::Turns;
use watch::{Event, Watches};

/// The special node whose watches fire when a domain is introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// The special node whose watches fire when a domain is released.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// Most connections of one domain.
const MAX_CONNECTIONS: usize = 64;
/// What a request costs of its domain's turn; every event that it fires is one more.
const REQUEST_WORK: usize = 4;
/// The bytes of a request, or of a changed node's path, that cost one.
const BYTES_A_WORK: usize = 64;

/// A connection's number, which is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// The store as a value.
///
/// The caller moves bytes: it passes those that a connection sent to [`Core::input`] while [`Core::wants_input`], has one
/// request at a time executed by [`Core::step`], and sends the bytes of [`Core::output`] and acknowledges them with
/// [`Core::sent`]. After any call [`Core::take_woken`] returns the connections that have output or are [`Core::closed`].
///
/// ```
/// use ring_abi::xs_wire::MessageType;
/// use xenstore::server::{Core, Quotas};
/// use xenstore::wire::Message;
///
/// let mut core = Core::new(Quotas::default());
/// let dom0 = core.connect();
/// core.input(dom0, &Message::new(MessageType::Write, 1, 0, b"/a\0value".to_vec()).to_bytes());
/// while core.step() {}
/// assert_eq!(core.take_woken(), [dom0]);
/// assert!(core.output(dom0).ends_with(b"OK\0"));
/// core.sent(dom0, core.output(dom0).len());
/// assert!(core.output(dom0).is_empty());
/// ```
pub struct Core {
    tree: Tree,
    generation: Generation,
    /// Number of changes made to the tree.
    changes: u64,
    /// The value of `changes` at which old transactions are next expired.
    next_expiry: u64,
    watches: Watches,
    connections: BTreeMap<ConnId, Connection>,
    domains: BTreeMap<DomId, Domain>,
    quotas: Quotas,
    next_conn: u64,
    /// Connections that have output or are closed: those of dom0, and those of guests.
    woken: [VecDeque<ConnId>; 2],
    turns: Turns,
    /// Work done so far; each request's is charged to its domain.
    work: usize,
    /// The longest turn of the caller's loop, for CONTROL to tell.
    longest_turn: LongestTurn,
    /// What is kept for a successor.
    journal: Journal,
}

impl Core {
    /// Makes an empty store. `quotas` are those of new domains.
    pub fn new(quotas: Quotas) -> Core {
        Core {
            tree: Tree::new(),
            generation: 1,
            changes: 0,
            next_expiry: 0,
            watches: Watches::default(),
            connections: BTreeMap::new(),
            domains: BTreeMap::from([(DomId::DOM0, Domain::introduced(DomId::DOM0, quotas))]),
            quotas,
            next_conn: 1,
            woken: Default::default(),
            turns: Turns::default(),
            work: 0,
            longest_turn: LongestTurn::default(),
            journal: Journal::default(),
        }
    }

    /// The longest turn of the caller's loop, which the caller measures and CONTROL tells.
    pub fn longest_turn(&self) -> LongestTurn {
        self.longest_turn.clone()
    }

    /// Adds a connection of dom0, which may make every request.
    pub fn connect(&mut self) -> ConnId {
        self.add(DomId::DOM0)
    }

    /// Adds a domain's connection. A domain may have up to 64, as one that is a process has no kernel to share a
    /// connection among its drivers; the quotas hold for all of them together, that of unsent replies for each. The first
    /// connection fires `@introduceDomain`.
    ///
    /// # Errors
    /// EINVAL for dom0 and for reserved numbers, ENOSPC for one connection too many.
    pub fn introduce(&mut self, domid: DomId) -> Result<ConnId, XsError> {
        self.mark_introduced(domid)?;
        self.end_frame();
        if self.domains.get(&domid).is_some_and(|domain| domain.conns.len() >= MAX_CONNECTIONS) {
            return Err(XsError::ENOSPC);
        }
        let id = self.add(domid);
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.conns.insert(id);
        }
        Ok(id)
    }

    /// Releases a domain, as described at the [module](self).
    ///
    /// # Errors
    /// ENOENT when it was not introduced, EINVAL for dom0.
    pub fn release(&mut self, domid: DomId) -> Result<(), XsError> {
        let released = self.remove_domain(domid);
        self.end_frame();
        released
    }

    /// Removes a connection with its watches and transactions.
    pub fn disconnect(&mut self, id: ConnId) {
        self.close(id);
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(domain) = self.domains.get_mut(&connection.domid) {
            domain.conns.remove(&id);
        }
    }

    /// Adds bytes that a connection sent. At most these bytes and one message are held.
    pub fn input(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { return };
        connection.decoder.push(bytes);
        self.enqueue(id);
    }

    /// Whether further bytes may be read from a connection: it has no whole request that is not executed, and few enough of
    /// its replies are unsent.
    pub fn wants_input(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_some_and(|c| !c.queued && c.may_proceed(&self.quotas_of(c.domid)))
    }

    /// Executes one request, of the connection whose turn it is; `false` when there is none.
    pub fn step(&mut self) -> bool {
        let Some(id) = self.turns.next() else { return false };
        // One that is closed meanwhile has no requests.
        let Some(connection) = self.connections.get_mut(&id) else { return true };
        connection.queued = false;
        let domid = connection.domid;
        let before = self.work;
        match connection.decoder.take() {
            Ok(Some(request)) => {
                self.work += REQUEST_WORK + request.payload.len() / BYTES_A_WORK;
                self.execute(id, &request);
                self.end_frame();
                self.settle(id);
            }
            Ok(None) => {}
            Err(e) => self.close_for(id, &e.to_string()),
        }
        self.turns.charge(domid, self.work - before);
        self.enqueue(id);
        true
    }

    /// Whether requests are left to [`Core::step`], or connections to [`Core::next_woken`].
    pub fn has_work(&self) -> bool {
        !self.turns.is_empty() || self.woken.iter().any(|woken| !woken.is_empty())
    }

    /// Whether a connection has a whole request that is not executed.
    pub fn has_request(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_some_and(|c| c.queued)
    }

    /// The bytes to send next; empty when there are none.
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.outputs(id).next().unwrap_or(&[])
    }

    /// All bytes to send, in order, in parts.
    pub fn outputs(&self, id: ConnId) -> impl Iterator<Item = &[u8]> {
        self.connections.get(&id).into_iter().flat_map(|c| c.outbox.parts())
    }

    /// Removes the first `n` bytes of [`Core::outputs`], which were sent.
    pub fn sent(&mut self, id: ConnId, n: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outbox.advance(n);
        self.settle(id);
        self.enqueue(id);
    }

    /// Whether a connection has violated the protocol, left too many events unread or lost its domain. The caller has
    /// to [`Core::disconnect`] it.
    pub fn closed(&self, id: ConnId) -> bool {
        self.connections.get(&id).is_none_or(|c| c.closed)
    }

    /// Takes a connection that has output or is closed, those of dom0 first.
    pub fn next_woken(&mut self) -> Option<ConnId> {
        loop {
            let id = self.woken.iter_mut().find_map(VecDeque::pop_front)?;
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.woken = false;
                return Some(id);
            }
        }
    }

    /// Takes all connections that have output, or are closed, since the last call.
    pub fn take_woken(&mut self) -> Vec<ConnId> {
        std::iter::from_fn(|| self.next_woken()).collect()
    }

    /// Has [`Core::next_woken`] return a connection once more: what it could send before is limited.
    pub fn wake(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.woken) {
            connection.woken = true;
            self.woken[usize::from(connection.domid != DomId::DOM0)].push_back(id);
        }
    }

    /// Bytes held of a connection's undecoded input, and of its unsent output.
    pub fn backlog(&self, id: ConnId) -> (usize, usize) {
        self.connections.get(&id).map_or((0, 0), |c| (c.decoder.pending(), c.outbox.bytes()))
    }

    fn add(&mut self, domid: DomId) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        self.connections.insert(id, Connection::new(domid));
        id
    }

    /// Queues a connection's next request, if it has a whole one and few enough of its replies are unsent.
    fn enqueue(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let may = connection.may_proceed(&self.quotas_of(connection.domid));
        if may && !connection.queued && connection.decoder.has_message() {
            self.turns.add(connection.domid, id);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.queued = true;
            }
        }
    }

    fn execute(&mut self, id: ConnId, request: &Message) {
        let header = request.header;
        let outcome = self.handle(id, request).and_then(|reply| {
            let fits = reply.payload.len() <= PAYLOAD_MAX;
            fits.then_some(reply).ok_or(XsError::E2BIG)
        });
        let message = |kind, payload| Message::new(kind, header.req_id, header.tx_id, payload);
        let (reply, event) = match outcome {
            Ok(reply) => (message(reply.kind, reply.payload), reply.event),
            Err(e) => (message(MessageType::Error, [e.name().as_bytes(), b"\0"].concat()), None),
        };
        if let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) {
            connection.outbox.reply(&reply);
            self.wake(id);
        }
        self.deliver(event);
    }

    /// Counts changes that were made to the tree and fires their watches.
    fn fire(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            self.changes += 1;
            self.work += effect.path.as_str().len() / BYTES_A_WORK;
            let credentials = |id| self.connections.get(&id).map(|c: &Connection| self.credentials(c.domid));
            let events = self.watches.fired(&effect, credentials);
            self.work += events.len();
            self.deliver(events);
        }
        if self.changes >= self.next_expiry {
            self.next_expiry = self.changes + transaction::MAX_AGE / 16;
            self.expire();
        }
    }

    /// Expires guests' transactions that hold a tree too old.
    fn expire(&mut self) {
        let guests = self.connections.values_mut().filter(|c| c.domid != DomId::DOM0);
        for connection in guests {
            for transaction in connection.transactions.values_mut() {
                if self.changes - transaction.began > transaction::MAX_AGE {
                    transaction.expire(&self.tree, self.changes);
                }
            }
        }
    }

    fn deliver(&mut self, events: impl IntoIterator<Item = Event>) {
        for Event { conn: id, payload, special } in events {
            let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { continue };
            connection.outbox.event(payload, special);
            let domid = connection.domid;
            self.wake(id);
            self.settle(id);
            match domid {
                DomId::DOM0 if !self.connections[&id].overflows() => {}
                DomId::DOM0 => self.close_for(id, "too many events unread"),
                _ => self.limit_events(domid),
            }
        }
    }

    /// Closes connections of a guest, those with most bytes unsent, while it has too many events unsent in all.
    fn limit_events(&mut self, domid: DomId) {
        while let Some(domain) = self.domains.get(&domid) {
            let usage = domain.usage;
            let quotas = &domain.allowance.quotas;
            if !quotas.exceeded(Quota::Events, usage.events) && usage.bytes <= connection::MAX_BYTES {
                return;
            }
            let unsent = |id: &ConnId| self.connections.get(id).map_or(0, |c| c.outbox.bytes());
            let Some(most) = domain.conns.iter().copied().max_by_key(unsent) else { return };
            let why = format!(
                "quota watch-events exceeded: the domain has {} events, {} bytes unread",
                usage.events, usage.bytes
            );
            self.close_for(most, &why);
        }
    }

    /// Counts what a connection uses, after a change of it, to its domain.
    fn settle(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let now = connection.usage();
        let before = std::mem::replace(&mut connection.settled, now);
        if let Some(domain) = self.domains.get_mut(&connection.domid) {
            domain.usage.change(&before, &now);
        }
    }

    /// Fires a special node's watches.
    fn fire_special(&mut self, name: &str) {
        let path = Path::fixed(name);
        let readable = self.tree.get(&path).map(|node| node.perms.clone()).into_iter().collect();
        self.fire([Effect { path, readable, removed: None }]);
    }

    /// Closes a connection for what its client has done.
    fn close_for(&mut self, id: ConnId, fault: &str) {
        if let Some(connection) = self.connections.get(&id).filter(|c| !c.closed) {
            tracing::warn!(
                domid = connection.domid.0,
                connection = id.0,
                fault,
                "xenstore connection closed"
            );
            self.close(id);
        }
    }

    fn close(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| !c.closed) else { return };
        connection.close();
        self.settle(id);
        self.watches.remove_all(id);
        self.wake(id);
    }

    fn credentials(&self, domid: DomId) -> Credentials {
        Credentials { domid, target: self.domains.get(&domid).and_then(|d| d.target) }
    }

    fn quotas_of(&self, domid: DomId) -> Quotas {
        self.domains.get(&domid).map_or(self.quotas, |d| d.allowance.quotas)
    }
}
