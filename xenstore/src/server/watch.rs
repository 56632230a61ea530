//! Watches, and which of them a change fires.

use std::collections::BTreeMap;
use std::ops::Bound;

use ring_abi::xs_wire::{PAYLOAD_MAX, XsError};

use super::ConnId;
use super::access::{Perms, Who};
use super::node_ops::Effect;
use super::path::{Given, Path};

struct Watch {
    conn: ConnId,
    token: Box<[u8]>,
    /// Bytes to take off an event's path: the watch was relative.
    prefix: usize,
}

/// An event for a connection: the payload of a WATCH_EVENT.
pub(super) struct Event {
    pub(super) conn: ConnId,
    pub(super) payload: Vec<u8>,
    /// Those of special nodes are never merged: each is another domain.
    pub(super) special: bool,
}

/// All watches of all connections, by path.
#[derive(Default)]
pub(super) struct Watches {
    by_path: BTreeMap<Path, Vec<Watch>>,
}

impl Watches {
    /// Sets a watch and gives its first event.
    ///
    /// # Errors
    /// EEXIST when this connection watches this path with this token already.
    pub(super) fn add(&mut self, conn: ConnId, at: Given, token: &[u8]) -> Result<Option<Event>, XsError> {
        let here = self.by_path.entry(at.path.clone()).or_default();
        if here.iter().any(|w| w.conn == conn && *w.token == *token) {
            return Err(XsError::EEXIST);
        }
        let watch = Watch { conn, token: token.into(), prefix: at.prefix };
        let first = event(&watch, at.path.as_str());
        here.push(watch);
        Ok(first)
    }

    /// Takes a watch back.
    ///
    /// # Errors
    /// ENOENT when there is none.
    pub(super) fn remove(&mut self, conn: ConnId, path: &Path, token: &[u8]) -> Result<(), XsError> {
        let here = self.by_path.get_mut(path).ok_or(XsError::ENOENT)?;
        let at = here.iter().position(|w| w.conn == conn && *w.token == *token).ok_or(XsError::ENOENT)?;
        here.remove(at);
        if here.is_empty() {
            self.by_path.remove(path);
        }
        Ok(())
    }

    /// Takes all of a connection's watches back.
    pub(super) fn remove_all(&mut self, conn: ConnId) {
        self.by_path.retain(|_, here| {
            here.retain(|w| w.conn != conn);
            !here.is_empty()
        });
    }

    /// The events a change means, in order of path. `who` says on whose behalf a connection speaks.
    pub(super) fn fired(&self, effect: &Effect, who: impl Fn(ConnId) -> Option<Who>) -> Vec<Event> {
        let may = |watch: &Watch, lists: &[Perms]| {
            who(watch.conn).is_some_and(|who| lists.iter().any(|perms| who.access(perms).reads()))
        };
        let mut events = Vec::new();
        for path in effect.path.upwards() {
            let here = self.by_path.get(path).into_iter().flatten();
            let told = here.filter(|w| may(w, &effect.readable));
            events.extend(told.filter_map(|w| event(w, effect.path.as_str())));
        }
        for (path, lists, here) in self.below(effect) {
            let told = here.iter().filter(|w| may(w, &lists));
            events.extend(told.filter_map(|w| event(w, path.as_str())));
        }
        events
    }

    /// The watches on nodes that went with the one removed, and who could read each node.
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

/// The event's payload; `None` when it does not fit the wire, as xenstored.
fn event(watch: &Watch, path: &str) -> Option<Event> {
    let payload = [&path.as_bytes()[watch.prefix..], b"\0", &watch.token, b"\0"].concat();
    let special = path.starts_with('@');
    (payload.len() <= PAYLOAD_MAX).then_some(Event { conn: watch.conn, payload, special })
}
