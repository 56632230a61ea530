//! The words of a command as bridge(8) has them: keywords with a value behind each, and words that stand by themselves.

use std::str::FromStr;

use crate::error::{Error, Result};

/// What is left of a command's words.
pub(super) struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    /// The keywords that were there, each of which may be there once.
    seen: Vec<&'a str>,
    /// What the command takes, for errors.
    expected: &'static str,
}

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [String], expected: &'static str) -> Words<'a> {
        Words { rest: words.iter(), seen: Vec::new(), expected }
    }

    /// The next word.
    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.rest.next().map(String::as_str)
    }

    /// The next word, a keyword that may be there once.
    pub(super) fn keyword(&mut self) -> Result<Option<&'a str>> {
        self.next().map(|word| self.once(word)).transpose()
    }

    /// A keyword that may be there once.
    pub(super) fn once(&mut self, word: &'a str) -> Result<&'a str> {
        if self.seen.contains(&word) {
            return Err(Error::Other(format!("found {word:?} a second time, expected it once")));
        }
        self.seen.push(word);
        Ok(word)
    }

    /// That there are no further words.
    pub(super) fn end(&mut self) -> Result<()> {
        self.next().map_or(Ok(()), |word| Err(self.unknown(word)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyword_is_taken_once() {
        let all = ["vlan", "vlan", "dev", "vlan"].map(str::to_owned);
        let mut words = Words::new(&all, "words");
        assert_eq!(words.keyword().unwrap(), Some("vlan"));
        assert_eq!(words.need("vlan").unwrap(), "vlan", "a value is no keyword");
        assert_eq!(words.keyword().unwrap(), Some("dev"));
        let error = words.keyword().unwrap_err().to_string();
        assert!(error.contains("found \"vlan\" a second time"), "{error}");
        assert!(words.keyword().unwrap().is_none());
    }
}
