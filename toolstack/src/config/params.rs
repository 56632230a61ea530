//! Comma-separated parameters of a disk or vif, each given at most once.

use crate::error::{Origin, Result};

/// Parameters by name. An empty value counts as absent, as in xl.
#[derive(Debug)]
pub(super) struct Params<'a> {
    origin: &'a Origin,
    /// The key that these are the parameters of: `disk` or `vif`.
    of: &'static str,
    values: Vec<(&'static str, String)>,
}

impl<'a> Params<'a> {
    pub(super) fn new(origin: &'a Origin, of: &'static str) -> Params<'a> {
        Params { origin, of, values: Vec::new() }
    }

    pub(super) fn origin(&self) -> &'a Origin {
        self.origin
    }

    /// Whether the parameter was given, even if empty.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// Whether the parameter was given with this value.
    pub(super) fn is_set_to(&self, name: &str, value: &str) -> bool {
        self.values.iter().any(|(n, v)| *n == name && v == value)
    }

    /// Sets a parameter. A second value is an error unless the first was empty or is the same.
    pub(super) fn set(&mut self, name: &'static str, value: &str) -> Result<()> {
        match self.values.iter_mut().find(|(n, _)| *n == name) {
            None => self.values.push((name, value.to_owned())),
            Some((_, old)) if old.is_empty() || old == value => value.clone_into(old),
            Some((_, old)) => {
                let expected = format!("it once (it is {old:?} already)");
                return Err(self.invalid(name, value, expected));
            }
        }
        Ok(())
    }

    /// Removes a parameter and returns its value; `None` if it is empty.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.values.iter().position(|(n, _)| *n == name)?;
        Some(self.values.remove(at).1).filter(|v| !v.is_empty())
    }

    /// Removes a parameter that is not supported; an error if it has a value.
    pub(super) fn refuse(&mut self, name: &'static str, supported: &str) -> Result<()> {
        match self.take(name) {
            None => Ok(()),
            Some(value) => Err(self.invalid(name, &value, supported)),
        }
    }

    /// Returns the error that a parameter has an invalid value.
    pub(super) fn invalid(
        &self,
        name: &str,
        found: &str,
        expected: impl Into<String>,
    ) -> crate::error::Error {
        self.origin.invalid(&self.key(name), found, expected)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}: {name}", self.of)
    }
}
