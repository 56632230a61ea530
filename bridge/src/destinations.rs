//! Where a port's frames go: whether to one other port only, for which it may be held.

use std::time::{Duration, Instant};

use crate::fdb::PortId;

/// How long a port that has sent to several ports is not held for any of them.
const MEMORY: Duration = Duration::from_secs(1);

/// The ports that the frames of one port have lately gone to.
#[derive(Debug, Default)]
pub(crate) struct Destinations {
    last: Option<PortId>,
    /// Frames went to several ports.
    several: Option<Instant>,
}

impl Destinations {
    /// Records the ports of a batch, and returns the one that all lately went to. A batch for several ports says nothing of
    /// later ones if all its frames were `flooded`, as those that ask for an address are.
    #[inline]
    pub(crate) fn sole(
        &mut self,
        mut ports: impl Iterator<Item = PortId>,
        flooded: bool,
        now: Instant,
    ) -> Option<PortId> {
        let first = ports.next()?;
        let is_one = ports.next().is_none();
        if is_one && self.last == Some(first) && self.several.is_none() {
            return Some(first);
        }
        if is_one {
            self.change(first, now)
        } else {
            self.several = if flooded { self.several } else { Some(now) };
            None
        }
    }

    fn change(&mut self, to: PortId, now: Instant) -> Option<PortId> {
        if self.last.replace(to).is_some_and(|last| last != to) {
            self.several = Some(now);
        }
        if self.several.is_some_and(|since| now.saturating_duration_since(since) < MEMORY) {
            return None;
        }
        self.several = None;
        Some(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    #[test]
    fn port_whose_frames_go_to_one_port_has_a_sole_destination() {
        let mut destinations = Destinations::default();
        let now = Instant::now();
        assert_eq!(destinations.sole([A].into_iter(), false, now), Some(A));
        assert_eq!(destinations.sole([A].into_iter(), false, now), Some(A));
        assert_eq!(destinations.sole([].into_iter(), false, now), None);
        // A flood has several destinations, and is forgotten.
        assert_eq!(destinations.sole([A, B].into_iter(), true, now), None);
        assert_eq!(destinations.sole([A].into_iter(), false, now), Some(A));
    }

    #[test]
    fn port_whose_frames_go_to_several_ports_has_none_for_a_while() {
        let mut destinations = Destinations::default();
        let now = Instant::now();
        assert_eq!(destinations.sole([A, B].into_iter(), false, now), None);
        assert_eq!(destinations.sole([A].into_iter(), false, now), None);
        let later = now + MEMORY;
        assert_eq!(destinations.sole([A].into_iter(), false, later), Some(A));
        assert_eq!(destinations.sole([B].into_iter(), false, later), None);
        assert_eq!(destinations.sole([A].into_iter(), false, later), None);
        assert_eq!(destinations.sole([A].into_iter(), false, later + MEMORY), Some(A));
    }
}
