//! The client's bounded queue of watch events, in which equal events are merged.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::error::{Error, Result};
use crate::wire;

/// A change at or below a watched path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// The node that changed; relative if the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

impl WatchEvent {
    /// Parses the payload of a WATCH_EVENT message.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the payload has fewer than two strings.
    pub(super) fn parse(payload: &[u8]) -> Result<WatchEvent> {
        let mut strings = wire::strings(payload).map(|s| String::from_utf8_lossy(s).into_owned());
        match (strings.next(), strings.next()) {
            (Some(path), Some(token)) => Ok(WatchEvent { path, token }),
            _ => Err(Error::Protocol("a watch event without path and token".into())),
        }
    }
}

/// Events that have not been taken.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<WatchEvent>,
    queued: HashSet<WatchEvent>,
    /// The tokens of events that were dropped: no more than there are watches.
    lost: BTreeSet<String>,
}

impl Events {
    /// Most events queued. A driver watches a handful of nodes; this many different events mean that the caller takes
    /// none.
    const MOST: usize = 1024;

    /// Adds an event unless an equal one is queued.
    pub(super) fn push(&mut self, event: WatchEvent) {
        if self.queued.contains(&event) {
            return;
        }
        if self.queue.len() == Events::MOST {
            let most = self.most();
            self.lost.insert(most.clone());
            if most == event.token {
                return;
            }
            // What one watch has queued does not take the room of another's.
            self.queue.retain(|queued| queued.token != most);
            self.queued.retain(|queued| queued.token != most);
        }
        self.queued.insert(event.clone());
        self.queue.push_back(event);
    }

    /// The token of most queued events.
    fn most(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for event in &self.queue {
            *counts.entry(&event.token).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or_else(String::new, |(token, _)| token.into())
    }

    pub(super) fn pop(&mut self) -> Result<Option<WatchEvent>> {
        if !self.lost.is_empty() {
            return Err(Error::EventsLost(std::mem::take(&mut self.lost).into_iter().collect()));
        }
        let event = self.queue.pop_front();
        if let Some(event) = &event {
            self.queued.remove(event);
        }
        Ok(event)
    }

    /// Drops the queued events of a removed watch.
    pub(super) fn forget(&mut self, path: &str, token: &str) {
        let below = |p: &str| {
            path == "/" || p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.queue.retain(|e| e.token != token || !below(&e.path));
        self.queued.retain(|e| e.token != token || !below(&e.path));
    }

    pub(super) fn clear(&mut self) {
        *self = Events::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str) -> WatchEvent {
        WatchEvent { path: path.into(), token: "t".into() }
    }

    #[test]
    fn equal_events_are_merged_and_lost_events_are_reported() {
        let mut events = Events::default();
        for n in 0..Events::MOST + 3 {
            events.push(event(&n.to_string()));
            events.push(event("0"));
        }
        assert!(matches!(events.pop(), Err(Error::EventsLost(tokens)) if tokens == ["t"]));
        for n in 0..Events::MOST {
            assert_eq!(events.pop().unwrap(), Some(event(&n.to_string())));
        }
        assert_eq!(events.pop().unwrap(), None);
    }

    #[test]
    fn events_of_other_watches_are_kept_beside_one_that_fires_without_end() {
        let mut events = Events::default();
        let other = |n| WatchEvent { path: format!("/other/{n}"), token: "other".into() };
        events.push(other(0));
        for n in 0..3 * Events::MOST {
            events.push(event(&n.to_string()));
        }
        events.push(other(1));
        assert!(matches!(events.pop(), Err(Error::EventsLost(tokens)) if tokens == ["t"]));
        assert_eq!([events.pop().unwrap(), events.pop().unwrap()], [Some(other(0)), Some(other(1))]);
        assert_eq!(events.pop().unwrap(), None);
    }

    #[test]
    fn forgetting_a_watch_keeps_events_of_others() {
        let mut events = Events::default();
        for path in ["/a", "/a/b", "/ab"] {
            events.push(event(path));
        }
        events.forget("/a", "other");
        events.forget("/a", "t");
        assert_eq!(events.pop().unwrap(), Some(event("/ab")));
        assert_eq!(events.pop().unwrap(), None);
    }
}
