//! What is set for a bridge as a whole, by the names of ip-link(8), type bridge.

use std::{fmt, ops::RangeInclusive};

/// The bits of `group_fwd_mask` that Linux's bridge refuses too: STP, which needs none here, pause frames and LACP, which are between
/// the two ends of one cable (`BR_GROUPFWD_RESTRICTED`).
const RESTRICTED: u16 = 0x0007;
/// Most learned entries that a bridge can be set to have.
const MAX_LEARNED: RangeInclusive<u32> = 1..=1 << 20;

/// One of a bridge's settings, which can be changed while it runs. A wire has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeSetting {
    /// `ageing_time`, in seconds: how long an entry lasts whose station is not seen. With 0 nothing is known of stations that were only
    /// seen, and their frames are flooded.
    AgeingTime(u32),
    /// `fdb_max_learned`: most learned entries. What is given, or a port's own, is not counted. Of more that there are now the rest
    /// expires.
    FdbMaxLearned(u32),
    /// `group_fwd_mask`: the link-local groups 01-80-C2-00-00-0X whose frames are forwarded, with bit X for each.
    GroupFwdMask(GroupFwdMask),
}

impl BridgeSetting {
    /// Whether it can be set.
    ///
    /// # Errors
    /// What was found, and what is expected.
    pub fn check(self) -> Result<(), InvalidBridgeSetting> {
        match self {
            BridgeSetting::FdbMaxLearned(entries) if !MAX_LEARNED.contains(&entries) => {
                let expected = "a number of entries from 1 to 1048576";
                Err(InvalidBridgeSetting { name: "fdb_max_learned", found: entries.to_string(), expected })
            }
            _ => Ok(()),
        }
    }
}

/// The link-local groups whose frames are forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupFwdMask(u16);

impl GroupFwdMask {
    /// A mask of bits 3 to 15.
    ///
    /// # Errors
    /// Where it has one of the bits 0 to 2.
    pub fn new(bits: u16) -> Result<GroupFwdMask, InvalidBridgeSetting> {
        if bits & RESTRICTED == 0 {
            return Ok(GroupFwdMask(bits));
        }
        let expected = "a mask without the bits 0x7, which are of STP, pause frames and LACP";
        Err(InvalidBridgeSetting { name: "group_fwd_mask", found: format!("{bits:#x}"), expected })
    }

    /// Its bits.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Whether frames for this group, by the last digit of its address, are forwarded.
    pub(crate) fn has(self, group: u8) -> bool {
        self.0 >> (group & 15) & 1 == 1
    }
}

impl fmt::Display for GroupFwdMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A value that a bridge's setting cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: found {found}, expected {expected}")]
pub struct InvalidBridgeSetting {
    /// The setting.
    pub name: &'static str,
    /// Its value.
    pub found: String,
    /// What would be valid.
    pub expected: &'static str,
}

/// The settings of a learning bridge that are in force, and what they bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Seconds after which an entry expires whose station is not seen.
    pub ageing_time_s: u32,
    /// Most learned entries.
    pub fdb_max_learned: u32,
    /// Learned entries.
    pub fdb_n_learned: u32,
    /// The link-local groups whose frames are forwarded.
    pub group_fwd_mask: GroupFwdMask,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_linuxs_bridge_refuses_are_refused() {
        for bits in [1, 2, 4, 0xffff, 0x4001] {
            let error = GroupFwdMask::new(bits).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("group_fwd_mask: found {bits:#x}, expected a mask")),
                "{error}"
            );
        }
        assert_eq!(GroupFwdMask::new(0xfff8).map(GroupFwdMask::bits), Ok(0xfff8));
        assert!(BridgeSetting::FdbMaxLearned(0).check().is_err());
        assert!(BridgeSetting::FdbMaxLearned((1 << 20) + 1).check().is_err());
        assert_eq!(BridgeSetting::FdbMaxLearned(1).check(), Ok(()));
    }
}
