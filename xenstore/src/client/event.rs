//! Watch events that wait to be taken: a bounded queue in which equal events are one.

use std::collections::VecDeque;

use super::error::{Error, Result};
use crate::wire;

/// Something at or below a watched path changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// The node that changed; relative if the watch was.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

impl WatchEvent {
    /// The event a WATCH_EVENT message carries.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it does not hold two strings.
    pub(super) fn parse(payload: &[u8]) -> Result<WatchEvent> {
        let mut strings = wire::strings(payload).map(|s| String::from_utf8_lossy(s).into_owned());
        match (strings.next(), strings.next()) {
            (Some(path), Some(token)) => Ok(WatchEvent { path, token }),
            _ => Err(Error::Protocol("a watch event without path and token".into())),
        }
    }
}

/// Events not taken yet.
#[derive(Default)]
pub(super) struct Events {
    queue: VecDeque<WatchEvent>,
    lost: u64,
}

impl Events {
    /// Most events queued. A driver watches a handful of nodes; this many different ones mean that nobody looks.
    const MOST: usize = 1024;

    /// Adds an event unless an equal one waits: both say "look again".
    pub(super) fn push(&mut self, event: WatchEvent) {
        if self.queue.contains(&event) {
            return;
        }
        if self.queue.len() == Events::MOST {
            self.lost += 1;
        } else {
            self.queue.push_back(event);
        }
    }

    pub(super) fn pop(&mut self) -> Result<Option<WatchEvent>> {
        match std::mem::take(&mut self.lost) {
            0 => Ok(self.queue.pop_front()),
            lost => Err(Error::EventsLost(lost)),
        }
    }

    /// Drops what waits for a watch that is no more.
    pub(super) fn forget(&mut self, path: &str, token: &str) {
        let below = |p: &str| {
            path == "/" || p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.queue.retain(|e| e.token != token || !below(&e.path));
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
    fn equal_events_are_one_and_too_many_are_told() {
        let mut events = Events::default();
        for n in 0..Events::MOST + 3 {
            events.push(event(&n.to_string()));
            events.push(event("0"));
        }
        assert!(matches!(events.pop(), Err(Error::EventsLost(3))));
        for n in 0..Events::MOST {
            assert_eq!(events.pop().unwrap(), Some(event(&n.to_string())));
        }
        assert_eq!(events.pop().unwrap(), None);
    }

    #[test]
    fn forgetting_keeps_other_watches() {
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
