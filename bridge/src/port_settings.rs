//! What a port may send, as the administrator or the toolstack has set it: in force from its first frame on.

use std::{fmt, str::FromStr};

use crate::{fdb::Mac, rate_limit::Rate};

/// Which frames a port may send by their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Any.
    #[default]
    Off,
    /// Those from the port's own address alone. No frame for a station that is not known is sent to the port either, as its
    /// own is known.
    Mac,
    /// None, and none is sent to the port.
    Disabled,
}

impl Lock {
    const ALL: [Lock; 3] = [Lock::Off, Lock::Mac, Lock::Disabled];
    /// What [`Lock::from_str`] reads, in words.
    pub const EXPECTED: &'static str = "off, mac or disabled";

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Lock::Off => "off",
            Lock::Mac => "mac",
            Lock::Disabled => "disabled",
        }
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no lock's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", Lock::EXPECTED)]
pub struct UnknownLock;

impl FromStr for Lock {
    type Err = UnknownLock;

    fn from_str(text: &str) -> Result<Lock, UnknownLock> {
        Lock::ALL.into_iter().find(|lock| lock.name() == text).ok_or(UnknownLock)
    }
}

/// Most frames a second that a port may send to many ports at once, with twice as many in a burst. A frame counts as its
/// segments. `None` does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits {
    /// To the broadcast address.
    pub broadcast: Option<u64>,
    /// To other group addresses.
    pub multicast: Option<u64>,
    /// To stations of which no port is known.
    pub unknown_unicast: Option<u64>,
}

impl StormLimits {
    /// Those of a guest's port. Honest guests stay far below them: a scan of 65,536 addresses at nmap's usual pace broadcasts
    /// fewer than 1,000 requests a second, as a kernel asks three times for each of its at most 1,024 unanswered neighbours; a
    /// multicast of 500 Mbit/s in frames of 1,400 bytes has 45,000 a second. Of a station that is not known each frame goes to
    /// all ports, so that a stream to one that never answers is slowed to 140 Mbit/s.
    pub const GUEST: StormLimits =
        StormLimits { broadcast: Some(4_000), multicast: Some(60_000), unknown_unicast: Some(12_500) };
}

/// What a port may send. The default is anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// The address of the only station behind the port: a learning bridge knows it without having seen a frame of it, and no
    /// other port can have it.
    pub address: Option<Mac>,
    /// Which frames may be sent by their addresses.
    pub lock: Lock,
    /// The rate at which frames are received from the port; `None`: any.
    pub rate: Option<Rate>,
    /// The bounds of what the port may send to many.
    pub storm: StormLimits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_read_by_its_name_alone() {
        for lock in Lock::ALL {
            assert_eq!(lock.to_string().parse(), Ok(lock));
        }
        assert_eq!(Lock::from_str("Mac").unwrap_err().to_string(), "expected off, mac or disabled");
    }
}
