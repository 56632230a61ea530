//! The syntax of an `xl.cfg`: `key = value`, where a value is a string, a number, or a list of values over several
//! lines; `key += value` appends; `#` starts a comment, `;` separates settings in a line. [`super::domain`] interprets the keys.
//!
//! Source: xl.cfg(5), "SYNTAX", and what xl of Xen 4.17 takes.

mod lexer;

use super::Warnings;
use crate::error::{Error, Origin, Result};
use lexer::{Lexer, Token, TokenKind};

/// A value of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it starts.
    pub origin: Origin,
    /// The value.
    pub value: Value,
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string without its quotes, or a number.
    Single(String),
    /// A list.
    List(Vec<Item>),
}

/// One `key = value` or `key += value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Where the key is.
    pub origin: Origin,
    /// Whether the value is appended to the one that the key has.
    pub appends: bool,
    /// The value.
    pub value: Value,
}

/// Parses the settings of a text, in its order.
///
/// ```
/// use toolstack::config::cfg::{Value, parse};
/// use toolstack::error::Origin;
///
/// let settings = parse(&Origin::argument("CFG"), "name = 'web'  # comment\nmemory = 512").unwrap();
/// assert_eq!(settings[0].value, Value::Single("web".into()));
/// assert_eq!((settings[1].key.as_str(), settings[1].origin.line()), ("memory", Some(2)));
/// ```
///
/// # Errors
/// [`Error::Input`] if a line is no setting.
pub fn parse(origin: &Origin, text: &str) -> Result<Vec<Setting>> {
    let mut parser = Parser { origin, lexer: Lexer::new(origin, text), settings: Vec::new() };
    loop {
        match parser.statement() {
            Ok(true) => {}
            Ok(false) => return Ok(parser.settings),
            Err(error) => return Err(explain_python(error, text)),
        }
    }
}

/// Applies a setting to those before it: it replaces that of its key, or is appended to it.
///
/// # Errors
/// [`Error::Input`] if a list is to be appended to a string, or a string to a list.
pub fn apply(settings: &mut Vec<Setting>, setting: Setting, warnings: &mut Warnings) -> Result<()> {
    let Some(earlier) = settings.iter_mut().find(|earlier| earlier.key == setting.key) else {
        settings.push(setting);
        return Ok(());
    };
    if !setting.appends {
        let lost = match earlier.origin.line() {
            Some(line) => format!("what line {line} says"),
            None => "what was said before".to_owned(),
        };
        warnings.replaced(&setting.origin, &setting.key, &lost);
        *earlier = setting;
        return Ok(());
    }
    match (&mut earlier.value, setting.value) {
        (Value::Single(text), Value::Single(more)) => text.push_str(&more),
        (Value::List(items), Value::List(more)) => items.extend(more),
        (Value::Single(_), Value::List(_)) => {
            return Err(setting.origin.invalid(&setting.key, "+= a list", "a string, as the key has one"));
        }
        (Value::List(_), Value::Single(_)) => {
            return Err(setting.origin.invalid(&setting.key, "+= a string", "a list, as the key has one"));
        }
    }
    Ok(())
}

struct Parser<'a> {
    origin: &'a Origin,
    lexer: Lexer<'a>,
    settings: Vec<Setting>,
}

impl Parser<'_> {
    /// Parses one setting or separator; `false` at the end of the text.
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
        if !matches!(equals.kind, TokenKind::Equals | TokenKind::PlusEquals) {
            return Err(self.unexpected(&key, &equals, "= or +="));
        }
        let token = self.lexer.next()?;
        let value = self.value(&key, token, "a string in quotes, a number, or a list in brackets")?;
        let end = self.lexer.next()?;
        if !matches!(end.kind, TokenKind::End | TokenKind::NewLine | TokenKind::Semicolon) {
            return Err(self.unexpected(&key, &end, "the end of the line"));
        }
        let appends = equals.kind == TokenKind::PlusEquals;
        self.settings.push(Setting { key, origin: self.origin.at(line), appends, value });
        Ok(end.kind != TokenKind::End)
    }

    fn value(&mut self, key: &str, token: Token, expected: &str) -> Result<Value> {
        match token.kind {
            TokenKind::Atom => Ok(Value::Single(token.text)),
            TokenKind::Open => self.list(key).map(Value::List),
            _ => Err(self.unexpected(key, &token, expected)),
        }
    }

    /// Parses the rest of a list, which may span lines and end with a comma.
    fn list(&mut self, key: &str) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        self.lexer
            .enter_list(|| self.origin.invalid(key, "lists in lists in lists", "a list of fewer levels"))?;
        loop {
            let token = self.next_in_list()?;
            if token.kind == TokenKind::Close {
                break;
            }
            let origin = self.origin.at(token.line);
            let value = self.value(key, token, "a string in quotes, a number, or ]")?;
            items.push(Item { origin, value });
            let token = self.next_in_list()?;
            match token.kind {
                TokenKind::Close => break,
                TokenKind::Comma => {}
                _ => return Err(self.unexpected(key, &token, ", or ]")),
            }
        }
        self.lexer.leave_list();
        Ok(items)
    }

    fn next_in_list(&mut self) -> Result<Token> {
        loop {
            let token = self.lexer.next()?;
            if token.kind != TokenKind::NewLine {
                return Ok(token);
            }
        }
    }

    fn unexpected(&self, key: &str, token: &Token, expected: &str) -> Error {
        self.origin.at(token.line).invalid(key, token.describe(), expected)
    }
}

/// Adds to a syntax error that the line is Python, if it is: xm's configurations were programs.
fn explain_python(error: Error, text: &str) -> Error {
    match error {
        Error::Input { origin, key, found, expected } => {
            let line = origin.line().and_then(|line| text.lines().nth(line - 1)).unwrap_or_default();
            let expected = match is_python(line) {
                true => {
                    format!(
                        "{expected}; this looks like Python, which xl.cfg(5) is not: write plain KEY = VALUE"
                    )
                }
                false => expected,
            };
            Error::Input { origin, key, found, expected }
        }
        error => error,
    }
}

/// Whether a line that is no setting looks like Python.
fn is_python(line: &str) -> bool {
    const WORDS: [&str; 12] =
        ["import", "from", "def", "if", "elif", "else:", "for", "while", "print", "try:", "class", "return"];
    let mut quote = None;
    let unquoted = |c: &char| match (quote, *c) {
        (None, c @ ('\'' | '"')) => {
            quote = Some(c);
            false
        }
        (Some(open), c) if c == open => {
            quote = None;
            false
        }
        (Some(_), _) => false,
        (None, _) => true,
    };
    let code: String = line.chars().filter(unquoted).collect();
    let code = code.split('#').next().unwrap_or_default();
    let first = code.split_ascii_whitespace().next().unwrap_or_default();
    WORDS.contains(&first) || code.contains(['(', ')', ':', '+', '%', '{', '}'])
}

#[cfg(test)]
mod tests;
