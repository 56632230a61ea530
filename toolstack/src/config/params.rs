//! Comma-separated parameters of a disk or vif, each said at most once.

use crate::error::{Origin, Result};

/// Parameters by name. An empty value is as good as none, as in xl.
#[derive(Debug)]
pub(super) struct Params<'a> {
    origin: &'a Origin,
    /// What these are the parameters of: `disk` or `vif`.
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

    /// Whether anything, if only emptiness, was said.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// Whether this was said.
    pub(super) fn says(&self, name: &str, value: &str) -> bool {
        self.values.iter().any(|(n, v)| *n == name && v == value)
    }

    /// Says a value; again is an error unless it was empty or is the same.
    pub(super) fn set(&mut self, name: &'static str, value: &str) -> Result<()> {
        match self.values.iter_mut().find(|(n, _)| *n == name) {
            None => self.values.push((name, value.to_owned())),
            Some((_, old)) if old.is_empty() || old == value => value.clone_into(old),
            Some((_, old)) => {
                let expected = format!("it once (it is {old:?} already)");
                return Err(self.wrong(name, value, expected));
            }
        }
        Ok(())
    }

    /// Takes a value out; emptiness is `None`.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.values.iter().position(|(n, _)| *n == name)?;
        Some(self.values.remove(at).1).filter(|v| !v.is_empty())
    }

    /// Takes a value that must not be there, as there is no support for it.
    pub(super) fn refuse(&mut self, name: &'static str, supported: &str) -> Result<()> {
        match self.take(name) {
            None => Ok(()),
            Some(value) => Err(self.wrong(name, &value, supported)),
        }
    }

    /// The error for a parameter.
    pub(super) fn wrong(&self, name: &str, found: &str, expected: impl Into<String>) -> crate::error::Error {
        self.origin.wrong(&self.key(name), found, expected)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}: {name}", self.of)
    }
}
