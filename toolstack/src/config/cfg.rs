//! The syntax of an `xl.cfg`: `key = value`, where a value is a string, a number, or a list of these over several
//! lines; `#` starts a comment, `;` separates settings in a line. [`super::guest`] interprets the keys.
//!
//! Source: xl.cfg(5), "SYNTAX".

mod lexer;

use crate::error::{Origin, Result};
use lexer::{Lexer, Token, TokenKind};

/// One string or number of a list, and the line on which it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atom {
    /// The text, without quotes.
    pub text: String,
    /// The line; the first is 1.
    pub line: usize,
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string or a number.
    Single(String),
    /// A list.
    List(Vec<Atom>),
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The line of the key.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// Parses the settings of a file, in file order.
///
/// ```
/// use toolstack::config::cfg::{Value, parse};
/// use toolstack::error::Origin;
///
/// let settings = parse(&Origin::argument("CFG"), "name = 'web'  # comment\nmemory = 512").unwrap();
/// assert_eq!(settings[0].value, Value::Single("web".into()));
/// assert_eq!((settings[1].key.as_str(), settings[1].line), ("memory", 2));
/// ```
///
/// # Errors
/// [`crate::error::Error::Input`] if a line is no setting, or a key is set twice.
pub fn parse(origin: &Origin, text: &str) -> Result<Vec<Setting>> {
    let mut parser = Parser { origin, lexer: Lexer::new(origin, text), settings: Vec::new() };
    while parser.statement()? {}
    Ok(parser.settings)
}

struct Parser<'a> {
    origin: &'a Origin,
    lexer: Lexer<'a>,
    settings: Vec<Setting>,
}

impl Parser<'_> {
    /// Parses one setting or separator; `false` at the end of the file.
    fn statement(&mut self) -> Result<bool> {
        let token = self.lexer.next()?;
        match token.kind {
            TokenKind::End => return Ok(false),
            TokenKind::NewLine | TokenKind::Semicolon => return Ok(true),
            TokenKind::Word => {}
            _ => return Err(self.unexpected("syntax", &token, "a key such as name, disk or vif")),
        }
        let Token { text: key, line, .. } = token;
        let equals = self.lexer.next()?;
        if equals.kind != TokenKind::Equals {
            return Err(self.unexpected(&key, &equals, "="));
        }
        let value = self.value(&key)?;
        let end = self.lexer.next()?;
        if !matches!(end.kind, TokenKind::End | TokenKind::NewLine | TokenKind::Semicolon) {
            return Err(self.unexpected(&key, &end, "the end of the line"));
        }
        self.store(Setting { key, line, value })?;
        Ok(end.kind != TokenKind::End)
    }

    fn store(&mut self, setting: Setting) -> Result<()> {
        if let Some(first) = self.settings.iter().find(|s| s.key == setting.key) {
            let expected = format!("it once (line {} sets it already)", first.line);
            return Err(self.origin.at(setting.line).invalid(&setting.key, "the key again", expected));
        }
        self.settings.push(setting);
        Ok(())
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let token = self.lexer.next()?;
        match token.kind {
            TokenKind::Atom => Ok(Value::Single(token.text)),
            TokenKind::Open => self.list(key).map(Value::List),
            _ => Err(self.unexpected(key, &token, "a string in quotes, a number, or a list in brackets")),
        }
    }

    /// Parses the rest of a list, which may span lines and end with a comma.
    fn list(&mut self, key: &str) -> Result<Vec<Atom>> {
        let mut atoms = Vec::new();
        loop {
            let token = self.next_in_list()?;
            match token.kind {
                TokenKind::Close => return Ok(atoms),
                TokenKind::Atom => atoms.push(Atom { text: token.text, line: token.line }),
                _ => return Err(self.unexpected(key, &token, "a string in quotes, a number, or ]")),
            }
            let token = self.next_in_list()?;
            match token.kind {
                TokenKind::Close => return Ok(atoms),
                TokenKind::Comma => {}
                _ => return Err(self.unexpected(key, &token, ", or ]")),
            }
        }
    }

    fn next_in_list(&mut self) -> Result<Token> {
        loop {
            let token = self.lexer.next()?;
            if token.kind != TokenKind::NewLine {
                return Ok(token);
            }
        }
    }

    fn unexpected(&self, key: &str, token: &Token, expected: &str) -> crate::error::Error {
        self.origin.at(token.line).invalid(key, token.describe(), expected)
    }
}

#[cfg(test)]
mod tests;
