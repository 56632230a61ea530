//! All watches, and the events that a change fires.

use std::collections::BTreeMap;
use std::ops::Bound;

use ring_abi::xs_wire::{PAYLOAD_MAX, XsError};

use super::ConnId;
use super::access::{Credentials, Perms};
use super::node_ops::Effect;
use super::path::{Path, RequestPath};

struct Watch {
    conn: ConnId,
    token: Box<[u8]>,
    /// Bytes to strip from an event's path, because the watch's path was relative.
    prefix: usize,
}

/// A watch event for a connection.
pub(super) struct Event {
    pub(super) conn: ConnId,
    pub(super) payload: Vec<u8>,
    /// The event of a special node, which is never merged: each stands for another domain.
    pub(super) special: bool,
}

/// All watches of all connections, by path.
#[derive(Default)]
pub(super) struct Watches {
    by_path: BTreeMap<Path, Vec<Watch>>,
}

impl Watches {
    /// Adds a watch and returns its first event.
    ///
    /// # Errors
    /// EEXIST when this connection already watches this path with this token.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        at: RequestPath,
        token: &[u8],
    ) -> Result<Option<Event>, XsError> {
        let here = self.by_path.entry(at.path.clone()).or_default();
        if here.iter().any(|w| w.conn == conn && *w.token == *token) {
            return Err(XsError::EEXIST);
        }
        let watch = Watch { conn, token: token.into(), prefix: at.prefix };
        let first = event(&watch, at.path.as_str());
        here.push(watch);
        Ok(first)
    }

    /// Removes a watch.
    ///
    /// # Errors
    /// ENOENT when there is no such watch.
    pub(super) fn remove(&mut self, conn: ConnId, path: &Path, token: &[u8]) -> Result<(), XsError> {
        let here = self.by_path.get_mut(path).ok_or(XsError::ENOENT)?;
        let at = here.iter().position(|w| w.conn == conn && *w.token == *token).ok_or(XsError::ENOENT)?;
        here.remove(at);
        if here.is_empty() {
            self.by_path.remove(path);
        }
        Ok(())
    }

    /// Removes all watches of a connection.
    pub(super) fn remove_all(&mut self, conn: ConnId) {
        self.by_path.retain(|_, here| {
            here.retain(|w| w.conn != conn);
            !here.is_empty()
        });
    }

    /// The events that a change fires. `credentials` gives those of a connection.
    pub(super) fn fired(
        &self,
        effect: &Effect,
        credentials: impl Fn(ConnId) -> Option<Credentials>,
    ) -> Vec<Event> {
        let may_read = |watch: &Watch, lists: &[Perms]| {
            credentials(watch.conn)
                .is_some_and(|credentials| lists.iter().any(|perms| credentials.access(perms).reads()))
        };
        let mut events = Vec::new();
        for path in effect.path.upwards() {
            let here = self.by_path.get(path).into_iter().flatten();
            let fired = here.filter(|w| may_read(w, &effect.readable));
            events.extend(fired.filter_map(|w| event(w, effect.path.as_str())));
        }
        for (path, lists, here) in self.below(effect) {
            let fired = here.iter().filter(|w| may_read(w, &lists));
            events.extend(fired.filter_map(|w| event(w, path.as_str())));
        }
        events
    }

    /// The watches on nodes that were removed with the changed one, and the permissions by which each could be read.
    fn below<'w>(
        &'w self,
        effect: &'w Effect,
    ) -> impl Iterator<Item = (&'w Path, Vec<Perms>, &'w Vec<Watch>)> {
        let top = format!("{}/", effect.path);
        let from = (Bound::Excluded(top.as_str()), Bound::Unbounded);
        let candidates = effect.removed.is_some().then(|| self.by_path.range::<str, _>(from));
        let inside = candidates.into_iter().flatten();
        let inside: Vec<_> = inside.take_while(|(path, _)| path.as_str().starts_with(&top)).collect();
        inside.into_iter().filter_map(move |(path, here)| {
            let names: Vec<&str> = path.as_str()[top.len()..].split('/').collect();
            let parent = effect.removed.as_ref()?.descend(names[..names.len() - 1].iter().copied())?;
            let node = parent.child(names[names.len() - 1])?;
            Some((path, vec![node.perms.clone(), parent.perms.clone()], here))
        })
    }
}

/// Makes an event; `None` when its payload is too long for the wire, as in xenstored.
fn event(watch: &Watch, path: &str) -> Option<Event> {
    let payload = [&path.as_bytes()[watch.prefix..], b"\0", &watch.token, b"\0"].concat();
    let special = path.starts_with('@');
    (payload.len() <= PAYLOAD_MAX).then_some(Event { conn: watch.conn, payload, special })
}
