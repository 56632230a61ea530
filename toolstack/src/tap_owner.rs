//! Marks taps with their owner. Every tap that xpv creates for a vif has an alias that names the vif, such as
//! `xpv /run/xpv 7/0` for vif 0 of domain 7 of the machine in /run/xpv; `ip link show` prints it. A tap without such an
//! alias belongs to another program, one with another alias to another machine or another vif.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use bridge::port::{netdev, netdev::NetError};
use sha2::{Digest, Sha256};
use xenstore::DomId;

use crate::error::chain;

/// The first word of the alias.
const PROGRAM: &str = "xpv";
/// Longest name of an interface in bytes: `IFNAMSIZ` (linux/if.h) less its NUL.
const NAME_MAX: usize = 15;

/// The vif that a tap was created for.
///
/// ```
/// use toolstack::tap_owner::TapOwner;
///
/// let owner: TapOwner = "xpv /run/xpv 7/0".parse().unwrap();
/// assert_eq!((owner.dir.as_str(), owner.usual_name().as_str()), ("/run/xpv", "vif7.0"));
/// assert!("somebody's alias".parse::<TapOwner>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapOwner {
    /// The directory of the machine.
    pub dir: String,
    /// The frontend's domain.
    pub domid: DomId,
    /// The vif's device number.
    pub devid: u32,
}

impl TapOwner {
    /// Names vif `devid` of domain `domid` of the machine in `dir`. Symbolic links in the path are resolved, so that
    /// /run/xpv and /var/run/xpv are equal.
    pub fn new(dir: &Path, domid: DomId, devid: u32) -> TapOwner {
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        TapOwner { dir: dir.to_string_lossy().into_owned(), domid, devid }
    }

    /// Marks interface `name` as this vif's tap.
    pub fn mark(&self, name: &str) -> Result<(), NetError> {
        netdev::set_alias(name, &self.to_string())
    }

    /// Returns the usual name of the vif's tap: that of an interface of the kernel's backend.
    pub fn usual_name(&self) -> String {
        netback::default_vif_name(self.domid, self.devid)
    }

    /// Returns the name of a local machine's tap if another machine on this host has a tap of the usual name: domids
    /// are unique in a machine only. It ends in four hexadecimal digits that depend on the directory. `None` if it
    /// would be longer than an interface name may be.
    pub fn other_name(&self) -> Option<String> {
        let [high, low, ..] = <[u8; 32]>::from(Sha256::digest(&self.dir));
        Some(format!("{}-{high:02x}{low:02x}", self.usual_name())).filter(|name| name.len() <= NAME_MAX)
    }
}

impl fmt::Display for TapOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROGRAM} {} {}/{}", self.dir, self.domid, self.devid)
    }
}

/// The error that an alias is not one of xpv's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnOwner;

impl FromStr for TapOwner {
    type Err = NotAnOwner;

    fn from_str(alias: &str) -> Result<TapOwner, NotAnOwner> {
        let rest = alias.strip_prefix(PROGRAM).and_then(|rest| rest.strip_prefix(' ')).ok_or(NotAnOwner)?;
        let (dir, vif) = rest.rsplit_once(' ').ok_or(NotAnOwner)?;
        let (domid, devid) = vif.split_once('/').ok_or(NotAnOwner)?;
        let domid = domid.parse().map_err(|_| NotAnOwner)?;
        let devid = devid.parse().map_err(|_| NotAnOwner)?;
        Ok(TapOwner { dir: dir.into(), domid: DomId(domid), devid })
    }
}

/// What uses an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The tap of a vif.
    Vif(TapOwner),
    /// A tap without an alias of xpv. Versions of xpv before [`TapOwner`] did not mark taps.
    UnmarkedTap {
        /// Whether the tap remains when the program that uses it exits (`IFF_PERSIST`).
        persistent: bool,
    },
    /// An interface that is not a tap.
    Other,
}

impl Holder {
    /// Finds out what uses interface `name`.
    ///
    /// # Errors
    /// [`NetError::NoInterface`] if it does not exist.
    pub fn of(name: &str) -> Result<Holder, NetError> {
        let link = netdev::link(name)?;
        let owner = link.alias.as_deref().and_then(|alias| alias.parse().ok());
        Ok(match (link.kind.as_deref(), owner) {
            (Some("tun"), Some(owner)) => Holder::Vif(owner),
            (Some("tun"), None) => Holder::UnmarkedTap { persistent: link.persistent },
            _ => Holder::Other,
        })
    }
}

/// Describes what uses interface `name`, for messages.
pub fn holder(name: &str) -> String {
    Holder::of(name).map_or_else(|error| format!("unknown ({})", chain(&error)), |holder| holder.to_string())
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Vif(TapOwner { dir, domid, devid }) => {
                write!(f, "the tap of vif {devid} of domain {domid} of the xpv machine in {dir}")
            }
            Holder::UnmarkedTap { .. } => f.write_str("a tap that xpv did not make"),
            Holder::Other => f.write_str("no tap"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alias_round_trips_and_others_are_rejected() {
        for dir in ["/run/xpv", "/srv/two words"] {
            let owner = TapOwner { dir: dir.into(), domid: DomId(7), devid: 1 };
            assert_eq!(owner.to_string().parse(), Ok(owner));
        }
        for alias in
            ["", "xpv", "xpv ", "xpv /run/xpv", "xpv /run/xpv 7", "xpvx /run/xpv 7/1", "xpv /d 70000/0"]
        {
            assert_eq!(alias.parse::<TapOwner>(), Err(NotAnOwner), "{alias:?}");
        }
    }

    #[test]
    fn other_names_differ_by_directory_and_are_valid_interface_names() {
        let name =
            |dir: &str, domid, devid| TapOwner { dir: dir.into(), domid: DomId(domid), devid }.other_name();
        let first = name("/run/a", 1, 0).unwrap();
        assert!(first.starts_with("vif1.0-") && first.len() == 11, "{first}");
        assert_ne!(Some(first), name("/run/b", 1, 0));
        assert_eq!(name("/run/a", 32_751, 9).map(|name| name.len()), Some(15));
        assert_eq!(name("/run/a", 32_751, 10), None);
    }

    #[test]
    fn symbolic_links_to_a_directory_name_the_same_machine() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(TapOwner::new(dir.path(), DomId(1), 0), TapOwner::new(&link, DomId(1), 0));
    }
}
