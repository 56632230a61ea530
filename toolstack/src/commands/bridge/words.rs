//! The words of a command as bridge(8) has them: keywords with a value behind each, and words that stand by themselves.

use std::str::FromStr;

use crate::error::{Error, Result};

/// What is left of a command's words.
pub(super) struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    /// What the command takes, for errors.
    expected: &'static str,
}

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [String], expected: &'static str) -> Words<'a> {
        Words { rest: words.iter(), expected }
    }

    /// The next word.
    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.rest.next().map(String::as_str)
    }

    /// The next word, which must be there.
    pub(super) fn need(&mut self, name: &str) -> Result<&'a str> {
        self.next().ok_or_else(|| self.missing(name))
    }

    /// The error of a word that is missing.
    pub(super) fn missing(&self, name: &str) -> Error {
        Error::Other(format!("{name}: missing, expected {}", self.expected))
    }

    /// The value behind a keyword.
    pub(super) fn value<T: FromStr>(&mut self, keyword: &str, expected: &str) -> Result<T> {
        let text = self.need(keyword)?;
        text.parse().map_err(|_| Error::Other(format!("{keyword}: found {text:?}, expected {expected}")))
    }

    /// A VLAN behind the keyword `vlan`.
    pub(super) fn vlan(&mut self) -> Result<u16> {
        let expected = "a VLAN from 1 to 4094, or 0 for none";
        let vlan = self.value("vlan", expected)?;
        match vlan {
            0..=4094 => Ok(vlan),
            _ => Err(Error::Other(format!("vlan: found {vlan}, expected {expected}"))),
        }
    }

    /// The error of a word that is not understood.
    pub(super) fn unknown(&self, word: &str) -> Error {
        Error::Other(format!("found {word:?}, expected {}", self.expected))
    }
}
