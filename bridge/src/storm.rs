//! How much a port may send to many others at once: its storm limits.

use std::fmt;

use crate::{DropReason, fdb::Mac};

/// Why a frame goes to many ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Flood {
    /// To the broadcast address.
    Broadcast,
    /// To another group address.
    Multicast,
    /// To a station of which no port is known.
    UnknownUnicast,
}

impl Flood {
    /// Every reason, in the order of [`StormLimits::NAMES`].
    pub const ALL: [Flood; 3] = [Flood::Broadcast, Flood::Multicast, Flood::UnknownUnicast];

    /// The name of its limit in configurations: `storm_` and the reason for the drops beyond it.
    pub fn limit_name(self) -> &'static str {
        StormLimits::NAMES[self as usize]
    }

    pub(crate) fn to_group(group: Mac) -> Flood {
        if group.is_broadcast() { Flood::Broadcast } else { Flood::Multicast }
    }

    pub(crate) fn beyond_limit(self) -> DropReason {
        match self {
            Flood::Broadcast => DropReason::Broadcast,
            Flood::Multicast => DropReason::Multicast,
            Flood::UnknownUnicast => DropReason::UnknownUnicast,
        }
    }
}

/// Most frames a second that a port may send to many ports at once, with twice as many in a burst. A frame counts as its
/// segments. `None` does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits([Option<u32>; StormLimits::NAMES.len()]);

impl StormLimits {
    /// The limits' names.
    pub const NAMES: [&'static str; 3] = ["storm_broadcast", "storm_multicast", "storm_unknown_unicast"];
    /// What [`StormLimits::parse`] reads, in words.
    pub const EXPECTED: &'static str = "a number of frames a second, or none";

    /// Those of a guest's port. Honest guests stay far below them: a scan of 65,536 addresses at nmap's usual pace broadcasts
    /// fewer than 1,000 requests a second, as a kernel asks three times for each of its at most 1,024 unanswered neighbours; a
    /// multicast of 500 Mbit/s in frames of 1,400 bytes has 45,000 a second. Of a station that is not known each frame goes to
    /// all ports, so that a stream to one that never answers is slowed to 140 Mbit/s.
    pub const GUEST: StormLimits = StormLimits([Some(4_000), Some(60_000), Some(12_500)]);

    /// Reads a limit: a number, of which 0 does not limit, or `none`. `None` for another text.
    pub fn parse(text: &str) -> Option<Option<u32>> {
        match text {
            "none" => Some(None),
            _ if !text.bytes().all(|b| b.is_ascii_digit()) => None,
            _ => text.parse().ok().map(|limit| Some(limit).filter(|limit| *limit != 0)),
        }
    }

    /// The text of a limit.
    pub fn text(limit: Option<u32>) -> String {
        limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())
    }

    /// The limit of what is sent to many for this reason.
    pub fn get(&self, flood: Flood) -> Option<u32> {
        self.0[flood as usize]
    }

    /// Changes that limit. With `Some(0)` no frame is sent so.
    pub fn set(&mut self, flood: Flood, limit: Option<u32>) {
        self.0[flood as usize] = limit;
    }
}

impl fmt::Display for StormLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [broadcast, multicast, unknown_unicast] = self.0.map(StormLimits::text);
        write!(f, "broadcast={broadcast} multicast={multicast} unknown_unicast={unknown_unicast}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        let read = ["500", "0", "none", "", "-1", "+1", "4294967296", "5/s"].map(StormLimits::parse);
        assert_eq!(read, [Some(Some(500)), Some(None), Some(None), None, None, None, None, None]);
        let mut limits = StormLimits::GUEST;
        limits.set(Flood::Multicast, None);
        assert_eq!(limits.to_string(), "broadcast=4000 multicast=none unknown_unicast=12500");
        let names = Flood::ALL.map(|flood| format!("storm_{}", flood.beyond_limit().name()));
        assert_eq!(names.each_ref().map(String::as_str), StormLimits::NAMES);
    }
}
