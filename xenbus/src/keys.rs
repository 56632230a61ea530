//! A device's keys as a value, without I/O: what handshake cores read and write.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use ring_abi::xenbus::value::{Excerpt, type_name};

/// A key is missing, or is not of the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct KeyError {
    /// The node above the key.
    pub path: String,
    /// The key, relative to `path`.
    pub key: String,
    /// The key's value, shortened; `None` when the key is missing.
    pub found: Option<String>,
    /// The form of value expected.
    pub expected: &'static str,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeyError { path, key, found, expected } = self;
        match found {
            Some(found) => write!(f, "{path}/{key}: found {found:?}, expected {expected}"),
            None => write!(f, "{path}/{key}: missing, expected {expected}"),
        }
    }
}

/// Keys and values below one node of the store, in the order of their names. A key below a child is written with
/// slashes: `queue-0/ring-ref`.
///
/// ```
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/3/device/vif/0").with("queue-0/tx-ring-ref", 8).with("request-rx-copy", 1);
/// assert!(keys.flag("request-rx-copy")?);
/// assert_eq!(keys.below("queue-0").need::<u32>("tx-ring-ref")?, 8);
/// assert_eq!(keys.or("multi-queue-num-queues", 1u32)?, 1);
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keys {
    path: String,
    map: BTreeMap<String, String>,
}

impl Keys {
    /// No keys, below no node.
    pub const fn empty() -> Keys {
        Keys { path: String::new(), map: BTreeMap::new() }
    }

    /// Makes an empty set of keys below this node.
    pub fn new(path: impl Into<String>) -> Keys {
        Keys { path: path.into(), map: BTreeMap::new() }
    }

    /// The node above the keys.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Sets a key; numbers are written in decimal.
    pub fn set(&mut self, key: impl Into<String>, value: impl ToString) -> &mut Keys {
        self.map.insert(key.into(), value.to_string());
        self
    }

    /// Sets a key and returns the keys, to build a set in one expression.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Keys {
        self.set(key, value);
        self
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.map.remove(key)
    }

    /// A key's value as text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.map.get(key).map(String::as_str)
    }

    /// A key's value, or `None` when it is missing.
    ///
    /// # Errors
    /// [`KeyError`] when the value is no `T`.
    pub fn opt<T: FromStr>(&self, key: &str) -> Result<Option<T>, KeyError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.trim_ascii().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.error(key, type_name::<T>())),
        }
    }

    /// A key's value, or `default` when it is missing.
    ///
    /// # Errors
    /// [`KeyError`] when the value is no `T`.
    pub fn or<T: FromStr>(&self, key: &str, default: T) -> Result<T, KeyError> {
        Ok(self.opt(key)?.unwrap_or(default))
    }

    /// A key's value, which must be present.
    ///
    /// # Errors
    /// [`KeyError`] when the key is missing or its value is no `T`.
    pub fn need<T: FromStr>(&self, key: &str) -> Result<T, KeyError> {
        self.opt(key)?.ok_or_else(|| self.error(key, type_name::<T>()))
    }

    /// A feature flag: `true` for a number other than 0, `false` for 0 and where the key is missing.
    ///
    /// # Errors
    /// [`KeyError`] when the value is no number.
    pub fn flag(&self, key: &str) -> Result<bool, KeyError> {
        Ok(self.or::<u32>(key, 0)? != 0)
    }

    /// Makes the error that `key` is not `expected`, e.g. for a number outside the negotiated range.
    pub fn error(&self, key: &str, expected: &'static str) -> KeyError {
        KeyError {
            path: self.path.clone(),
            key: key.to_owned(),
            found: self.get(key).map(|value| Excerpt(value).to_string()),
            expected,
        }
    }

    /// The keys below a child, e.g. those of `queue-0`.
    pub fn below(&self, child: &str) -> Keys {
        let prefix = format!("{child}/");
        let map = self
            .map
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?.to_owned(), v.clone())))
            .collect();
        Keys { path: format!("{}/{child}", self.path), map }
    }

    /// All keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl<K: Into<String>, V: ToString> Extend<(K, V)> for Keys {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, keys: I) {
        for (key, value) in keys {
            self.set(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("/d")
            .with("ring-page-order", 4)
            .with("protocol", "x86_64-abi")
            .with("queue-0/ring-ref", 8)
            .with("queue-0/event-channel", 5)
            .with("queue-01/ring-ref", 9)
            .with("feature-persistent", " 1\n")
    }

    #[test]
    fn typed_getters_distinguish_missing_and_malformed_keys() {
        let keys = keys();
        assert_eq!(keys.opt::<u32>("ring-page-order"), Ok(Some(4)));
        assert_eq!(keys.opt::<u32>("ring-ref"), Ok(None));
        assert_eq!(keys.or("ring-ref", 7u32), Ok(7));
        assert!(keys.flag("feature-persistent").unwrap());
        assert!(!keys.flag("feature-discard").unwrap());
        let error = keys.opt::<u32>("protocol").unwrap_err();
        assert_eq!(error.to_string(), r#"/d/protocol: found "x86_64-abi", expected u32"#);
        let error = keys.need::<u32>("ring-ref").unwrap_err();
        assert_eq!(error.to_string(), "/d/ring-ref: missing, expected u32");
    }

    #[test]
    fn below_returns_keys_of_one_child() {
        let queue = keys().below("queue-0");
        assert_eq!(queue.path(), "/d/queue-0");
        assert_eq!(queue.iter().collect::<alloc::vec::Vec<_>>(), [("event-channel", "5"), ("ring-ref", "8")]);
    }

    #[test]
    fn long_value_is_shortened_in_error() {
        let keys = Keys::new("/d").with("k", "\u{e9}".repeat(5000));
        assert!(keys.need::<u32>("k").unwrap_err().to_string().len() < 300);
    }
}
