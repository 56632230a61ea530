//! The limits of a disk as a value: the toolstack's keys of the backend.

use std::fmt;

use ring_abi::blkif::key;
use xenbus::{KeyError, Keys};

/// The largest value of a limit: 10^15, as in QEMU (THROTTLE_VALUE_MAX).
pub const MAX_VALUE: u64 = 1_000_000_000_000_000;

/// The longest name of a group in bytes.
pub const MAX_GROUP_NAME: usize = 64;

/// What is expected of a limit's key, for error messages.
pub const EXPECTED: &str = "a number from 0, which is no limit, to 1000000000000000";

/// What is expected of a group's name, for error messages.
pub const EXPECTED_GROUP: &str = "a name of 1 to 64 letters, digits, '.', '_' or '-'";

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitKind {
    /// `iops-total`: requests.
    IopsTotal,
    /// `iops-read`: requests that read.
    IopsRead,
    /// `iops-write`: requests that write or discard.
    IopsWrite,
    /// `bps-total`: bytes.
    BpsTotal,
    /// `bps-read`: bytes that are read.
    BpsRead,
    /// `bps-write`: bytes that are written.
    BpsWrite,
}

impl LimitKind {
    /// All of them, in the order of [`key::LIMITS`].
    pub const ALL: [LimitKind; 6] = [
        LimitKind::IopsTotal,
        LimitKind::IopsRead,
        LimitKind::IopsWrite,
        LimitKind::BpsTotal,
        LimitKind::BpsRead,
        LimitKind::BpsWrite,
    ];

    /// Whether it counts bytes rather than requests.
    pub fn counts_bytes(self) -> bool {
        matches!(self, LimitKind::BpsTotal | LimitKind::BpsRead | LimitKind::BpsWrite)
    }

    /// Whether it counts requests that write, or else those that read.
    pub fn counts(self, write: bool) -> bool {
        match self {
            LimitKind::IopsTotal | LimitKind::BpsTotal => true,
            LimitKind::IopsRead | LimitKind::BpsRead => !write,
            LimitKind::IopsWrite | LimitKind::BpsWrite => write,
        }
    }
}

/// One limit; all 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Requests or bytes a second; 0 is no limit.
    pub average: u64,
    /// `-max`: requests or bytes a second that are allowed for a while after less was used; of no effect unless it is more than
    /// `average`.
    pub max: u64,
    /// `-max-length`: for how many seconds `max` is allowed at most; 0 is one.
    pub max_length: u64,
}

/// The limits of a disk; by default none.
///
/// ```
/// use blkback::throttle::{IoLimits, LimitKind};
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/0/backend/vbd/1/51712").with("iops-total", 500).with("iops-size", 65536);
/// let limits = IoLimits::from_keys(&keys)?;
/// assert_eq!((limits.of(LimitKind::IopsTotal).average, limits.iops_size), (500, 65536));
/// assert_eq!(limits.to_string(), "iops-total=500 iops-size=65536");
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoLimits {
    /// In the order of [`LimitKind::ALL`].
    pub limits: [Limit; 6],
    /// A request of more bytes than this counts as several, in proportion; 0: each counts as one.
    pub iops_size: u64,
}

impl IoLimits {
    /// Reads the keys of a backend.
    ///
    /// # Errors
    /// [`KeyError`] if one of the keys is no number, or more than [`MAX_VALUE`].
    pub fn from_keys(own: &Keys) -> Result<IoLimits, KeyError> {
        let mut limits = IoLimits::default();
        for (name, value) in limits.values_mut() {
            // An empty value is no limit, too: nobody can tell it from a key that is absent by looking at the store.
            let Some(text) = own.get(name).map(str::trim_ascii).filter(|text| !text.is_empty()) else {
                continue;
            };
            *value = text
                .parse()
                .ok()
                .filter(|value| *value <= MAX_VALUE)
                .ok_or_else(|| own.error(name, EXPECTED))?;
        }
        Ok(limits)
    }

    /// One of the limits.
    pub fn of(&self, kind: LimitKind) -> Limit {
        self.limits[kind as usize]
    }

    /// Sets one of the limits and returns all, to build a value in one expression.
    #[must_use]
    pub fn with(mut self, kind: LimitKind, limit: Limit) -> IoLimits {
        self.limits[kind as usize] = limit;
        self
    }

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        self.limits.iter().all(|limit| limit.average == 0)
    }

    /// Of each value the smallest that one of both has: the limits of a group whose disks have these.
    #[must_use]
    pub fn strictest(mut self, mut other: IoLimits) -> IoLimits {
        for ((_, value), (_, other)) in self.values_mut().into_iter().zip(other.values_mut()) {
            *value = [*value, *other].into_iter().filter(|value| *value != 0).min().unwrap_or(0);
        }
        self
    }

    /// The names of the keys, and the values that are not 0.
    pub fn entries(&self) -> Vec<(&'static str, u64)> {
        let mut limits = *self;
        let all = limits.values_mut().into_iter().map(|(name, value)| (name, *value));
        all.filter(|(_, value)| *value != 0).collect()
    }

    /// All values with their keys' names.
    fn values_mut(&mut self) -> Vec<(&'static str, &mut u64)> {
        let mut values = Vec::with_capacity(19);
        for (limit, names) in self.limits.iter_mut().zip(&key::LIMITS) {
            let Limit { average, max, max_length } = limit;
            values.extend(names.iter().copied().zip([average, max, max_length]));
        }
        values.push((key::IOPS_SIZE, &mut self.iops_size));
        values
    }
}

impl fmt::Display for IoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries();
        if entries.is_empty() {
            return f.write_str("none");
        }
        for (number, (name, value)) in entries.into_iter().enumerate() {
            write!(f, "{}{name}={value}", if number == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Whether a text can be the name of a group.
pub fn is_group_name(name: &str) -> bool {
    let is_valid = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=MAX_GROUP_NAME).contains(&name.len()) && name.bytes().all(is_valid)
}

/// The group that a backend's keys name, if they name one.
///
/// # Errors
/// [`KeyError`] if it can be no group's name.
pub fn group(own: &Keys) -> Result<Option<&str>, KeyError> {
    match own.get(key::THROTTLE_GROUP).map(str::trim_ascii) {
        None | Some("") => Ok(None),
        Some(name) if is_group_name(name) => Ok(Some(name)),
        Some(_) => Err(own.error(key::THROTTLE_GROUP, EXPECTED_GROUP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("/b")
    }

    #[test]
    fn every_key_is_read_into_its_value() {
        let names = key::LIMITS.iter().flatten().copied().chain([key::IOPS_SIZE]);
        let mut own = keys();
        own.extend(names.clone().zip(1..));
        let limits = IoLimits::from_keys(&own).unwrap();
        let expected: Vec<_> = names.zip(1..).collect();
        assert_eq!(limits.entries(), expected);
        assert_eq!(limits.of(LimitKind::BpsWrite), Limit { average: 16, max: 17, max_length: 18 });
        assert!(LimitKind::ALL.iter().enumerate().all(|(number, kind)| *kind as usize == number));
    }

    #[test]
    fn bad_value_is_refused_with_key_value_and_what_is_expected() {
        for value in ["-1", "fast", "1.5", "10M", "1000000000000001", "99999999999999999999"] {
            let error = IoLimits::from_keys(&keys().with("bps-read", value)).unwrap_err().to_string();
            assert_eq!(error, format!("/b/bps-read: found {value:?}, expected {EXPECTED}"));
        }
        let largest = IoLimits::from_keys(&keys().with("bps-read", MAX_VALUE)).unwrap();
        assert_eq!(largest.of(LimitKind::BpsRead).average, MAX_VALUE);
        for none in ["0", "", " "] {
            assert!(IoLimits::from_keys(&keys().with("iops-total", none)).unwrap().is_none());
        }
        for bad in ["a/b", "two words", &"x".repeat(65)] {
            let error = group(&keys().with("throttle-group", bad)).unwrap_err().to_string();
            assert!(error.ends_with(EXPECTED_GROUP), "{error}");
        }
        assert_eq!(group(&keys().with("throttle-group", "gold-1")), Ok(Some("gold-1")));
        assert_eq!(group(&keys().with("throttle-group", "")), Ok(None));
    }

    #[test]
    fn strictest_of_two_has_the_smaller_of_each_value_that_is_a_limit() {
        let limits = |own: Keys| IoLimits::from_keys(&own).unwrap();
        let one = limits(keys().with("iops-total", 100).with("bps-read", 5));
        let other = limits(keys().with("iops-total", 200).with("bps-write", 7).with("bps-read", 3));
        let expected = [("iops-total", 100), ("bps-read", 3), ("bps-write", 7)];
        assert_eq!(one.strictest(other).entries(), expected);
        assert_eq!(other.strictest(one).entries(), expected);
        assert_eq!(IoLimits::default().to_string(), "none");
    }
}
