//! Keys of the toolstack that say together what a guest may do, and may be rewritten at any time.

use std::fmt::Display;
use xenbus::{KeyError, Keys};

/// Keys, and what became of their last values.
#[derive(Debug)]
pub(crate) struct Followed<const N: usize> {
    keys: [&'static str; N],
    /// The values that were looked at last; `None` before that.
    values: Option<[Option<String>; N]>,
    /// Why no values could be read so far.
    error: Option<KeyError>,
}

impl<const N: usize> Followed<N> {
    pub(crate) fn new(keys: [&'static str; N]) -> Self {
        Self { keys, values: None, error: None }
    }

    /// Whether the values are others than when they were last looked at.
    pub(crate) fn are_new(&self, own: &Keys) -> bool {
        self.values.as_ref() != Some(&self.read(own))
    }

    /// What the new values say; `None` if they say nothing, which is logged, and what is `in_force` is to stay.
    pub(crate) fn take<T>(
        &mut self,
        own: &Keys,
        read: Result<T, KeyError>,
        in_force: &dyn Display,
    ) -> Option<T> {
        let is_first = self.values.replace(self.read(own)).is_none();
        match read {
            Ok(value) => {
                self.error = None;
                Some(value)
            }
            Err(error) => {
                tracing::warn!(%error, %in_force, "failed to read a setting, which stays as it is");
                if is_first || self.error.is_some() {
                    self.error = Some(error);
                }
                None
            }
        }
    }

    /// Why there are no values that say anything, and none were in force before.
    pub(crate) fn error(&self) -> Option<&KeyError> {
        self.error.as_ref()
    }

    fn read(&self, own: &Keys) -> [Option<String>; N] {
        self.keys.map(|key| own.get(key).map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_that_were_never_read_are_an_error() {
        let mut followed = Followed::new(["vlan"]);
        let none = Keys::new("/b");
        let bad = none.clone().with("vlan", "x");
        let error = || Err::<(), _>(bad.error("vlan", "a VLAN"));
        assert!(followed.are_new(&bad));
        assert_eq!(followed.take(&bad, error(), &"none"), None);
        assert!(!followed.are_new(&bad) && followed.error().is_some());
        assert_eq!(followed.take(&none, Ok(()), &"none"), Some(()));
        assert!(followed.error().is_none());
        assert_eq!(followed.take(&bad, error(), &"none"), None);
        assert!(followed.error().is_none(), "what was read before is in force");
    }
}
