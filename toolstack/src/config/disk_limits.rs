//! The limits of a disk, as its line, `xpv block-set` and a policy write them: `iops-total=500`, `bps-read=10M`.

use std::collections::BTreeMap;

use blkback::throttle::limits::{EXPECTED_GROUP, MAX_VALUE, is_group_name};
use ring_abi::blkif::key;

use crate::error::{Origin, Result};

/// Limits by the keys of the backend, with values as the store has them: decimal, and 0 for no limit.
///
/// ```
/// use toolstack::config::DiskLimits;
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("DISK");
/// let mut limits = DiskLimits::default();
/// assert!(limits.set(&origin, "bps-read", "10M").unwrap().is_ok());
/// assert!(limits.set(&origin, "access", "rw").is_none(), "that is no limit");
/// assert_eq!(limits.iter().collect::<Vec<_>>(), [("bps-read", "10485760")]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits(BTreeMap<&'static str, String>);

/// What is expected of a limit of requests.
const EXPECTED: &str = "a number from 0, which is no limit, to 10^15";
/// What is expected of a limit of bytes.
const EXPECTED_BYTES: &str =
    "a number of bytes from 0, which is no limit, to 10^15, such as 1048576, 1024K, 1M or 1G";

/// The names of all keys.
pub fn names() -> impl Iterator<Item = &'static str> {
    key::LIMITS.into_iter().flatten().chain([key::IOPS_SIZE, key::THROTTLE_GROUP])
}

impl DiskLimits {
    /// Sets the limit of this key; `None` if no limit has it.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the key, the value found and what is valid.
    pub fn set(&mut self, origin: &Origin, name: &str, value: &str) -> Option<Result<()>> {
        let name = names().find(|known| *known == name)?;
        Some(parsed(origin, name, value).map(|value| {
            self.0.insert(name, value);
        }))
    }

    /// Whether the limit of a key is set.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Checks that each `-max` is above its limit, and each `-max-length` beside its `-max`: they would have no effect. With `rest`,
    /// which is what is in force already, of what is not set here.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the key, the value found and what is valid.
    pub fn check(&self, origin: &Origin, rest: impl Fn(&str) -> Option<String>) -> Result<()> {
        let value = |name: &str| self.0.get(name).cloned().or_else(|| rest(name));
        let number = |name: &str| value(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        for [limit, max, length] in key::LIMITS {
            let is_set = [limit, max, length].iter().any(|name| self.has(name));
            if is_set && number(max) != 0 && number(max) <= number(limit) {
                let expected = format!("more than {limit}, which is {}", number(limit));
                return Err(invalid(origin, max, &number(max).to_string(), expected));
            }
            if self.has(max) && number(max) != 0 && number(limit) == 0 {
                return Err(invalid(origin, max, &number(max).to_string(), format!("{limit} beside it")));
            }
            if self.has(length) && number(length) != 0 && number(max) == 0 {
                return Err(invalid(origin, length, &number(length).to_string(), format!("{max} beside it")));
            }
        }
        let requests = &key::LIMITS[..3];
        if self.has(key::IOPS_SIZE)
            && number(key::IOPS_SIZE) != 0
            && requests.iter().all(|[limit, ..]| number(limit) == 0)
        {
            let found = number(key::IOPS_SIZE).to_string();
            return Err(invalid(
                origin,
                key::IOPS_SIZE,
                &found,
                "iops-total, iops-read or iops-write beside it",
            ));
        }
        Ok(())
    }
}

/// A value as the store has it.
fn parsed(origin: &Origin, name: &'static str, value: &str) -> Result<String> {
    if name == key::THROTTLE_GROUP {
        return match is_group_name(value) {
            true => Ok(value.to_owned()),
            false => Err(invalid(origin, name, value, EXPECTED_GROUP)),
        };
    }
    let counts_bytes = name.starts_with("bps") && !name.ends_with("-length") || name == key::IOPS_SIZE;
    let (digits, factor) = match value.char_indices().last() {
        Some((at, 'K')) if counts_bytes => (&value[..at], 1 << 10),
        Some((at, 'M')) if counts_bytes => (&value[..at], 1 << 20),
        Some((at, 'G')) if counts_bytes => (&value[..at], 1 << 30),
        _ => (value, 1),
    };
    let number = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|c| c.is_ascii_digit()));
    let number = number.and_then(|number| number.checked_mul(factor)).filter(|number| *number <= MAX_VALUE);
    let expected = if counts_bytes { EXPECTED_BYTES } else { EXPECTED };
    number.map(|number| number.to_string()).ok_or_else(|| invalid(origin, name, value, expected))
}

fn invalid(origin: &Origin, name: &str, found: &str, expected: impl Into<String>) -> crate::error::Error {
    origin.invalid(&format!("disk: {name}"), found, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(settings: &[(&str, &str)]) -> Result<DiskLimits> {
        let mut limits = DiskLimits::default();
        let origin = Origin::argument("DISK");
        settings.iter().try_for_each(|(name, value)| limits.set(&origin, name, value).unwrap())?;
        limits.check(&origin, |_| None).map(|()| limits)
    }

    #[test]
    fn bytes_may_have_a_suffix_and_requests_may_not() {
        let of = |name, value| limits(&[(name, value)]).unwrap().iter().next().unwrap().1.to_owned();
        assert_eq!(of("bps-total", "3K"), "3072");
        assert_eq!(of("bps-write", "2G"), "2147483648");
        assert_eq!(of("iops-read", "007"), "7");
        assert_eq!(of("throttle-group", "gold"), "gold");
        assert_eq!(names().count(), 20);
    }

    #[test]
    fn bad_limit_is_rejected_with_key_value_and_what_is_expected() {
        for (settings, expected) in [
            (&[("iops-total", "5K")][..], r#"disk: iops-total: found "5K", expected a number from 0"#),
            (&[("bps-read", "-1")], r#"disk: bps-read: found "-1", expected a number of bytes"#),
            (&[("bps-read", "+1")], r#"found "+1""#),
            (&[("bps-read", "")], r#"found """#),
            (&[("bps-read", "K")], r#"found "K""#),
            (&[("bps-read", "10MB")], r#"found "10MB""#),
            (&[("bps-read", "1000000G")], r#"found "1000000G""#),
            (&[("iops-write", "18446744073709551616")], "10^15"),
            (&[("throttle-group", "a/b")], "disk: throttle-group: found \"a/b\", expected a name of 1 to 64"),
            (&[("iops-total", "500"), ("iops-total-max", "500")], "more than iops-total, which is 500"),
            (&[("iops-read-max", "500")], "disk: iops-read-max: found \"500\", expected iops-read beside it"),
            (&[("bps-read", "5"), ("bps-read-max-length", "5")], "expected bps-read-max beside it"),
            (
                &[("bps-read", "5"), ("iops-size", "4K")],
                "disk: iops-size: found \"4096\", expected iops-total",
            ),
        ] {
            let error = limits(settings).unwrap_err().to_string();
            assert!(error.contains(expected), "{settings:?}: {error}");
        }
    }

    #[test]
    fn what_is_in_force_already_counts_beside_what_is_set() {
        let origin = Origin::argument("KEY=VALUE");
        let mut limits = DiskLimits::default();
        limits.set(&origin, "iops-total-max", "1000").unwrap().unwrap();
        let in_force =
            |value: &'static str| move |name: &str| (name == "iops-total").then(|| value.to_owned());
        assert!(limits.check(&origin, in_force("500")).is_ok());
        assert!(limits.check(&origin, in_force("1000")).is_err());
        assert!(limits.check(&origin, |_| None).is_err());
    }
}
