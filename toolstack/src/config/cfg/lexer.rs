//! Splits an `xl.cfg` into tokens.

use std::iter::Peekable;
use std::str::Chars;

use crate::error::{Origin, Result};

/// The kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A key.
    Word,
    /// A string without its quotes, or a number.
    Atom,
    Equals,
    PlusEquals,
    Comma,
    Open,
    Close,
    Semicolon,
    NewLine,
    End,
}

/// A token, its text and the line on which it starts.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) text: String,
    pub(super) line: usize,
}

impl Token {
    /// How an error message names this token.
    pub(super) fn describe(&self) -> &str {
        match self.kind {
            TokenKind::NewLine => "the end of the line",
            TokenKind::End => "the end of the file",
            _ => &self.text,
        }
    }
}

pub(super) struct Lexer<'a> {
    origin: &'a Origin,
    rest: Peekable<Chars<'a>>,
    line: usize,
    /// Lists that are open.
    depth: usize,
}

/// How deep lists may be nested: the parser calls itself for each.
const MAX_DEPTH: usize = 16;

impl<'a> Lexer<'a> {
    pub(super) fn new(origin: &'a Origin, text: &'a str) -> Lexer<'a> {
        // Editors of Windows put a byte order mark first.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Lexer { origin, rest: text.chars().peekable(), line: 1, depth: 0 }
    }

    /// Returns the next token; `End` again and again at the end of the file.
    pub(super) fn next(&mut self) -> Result<Token> {
        self.skip_blanks();
        let line = self.line;
        let token = |kind, text: &str| Ok(Token { kind, text: text.to_owned(), line });
        let Some(first) = self.rest.next() else { return token(TokenKind::End, "") };
        match first {
            '\n' => {
                self.line += 1;
                token(TokenKind::NewLine, "\n")
            }
            '=' => token(TokenKind::Equals, "="),
            '+' if self.rest.next_if_eq(&'=').is_some() => token(TokenKind::PlusEquals, "+="),
            ',' => token(TokenKind::Comma, ","),
            '[' => token(TokenKind::Open, "["),
            ']' => token(TokenKind::Close, "]"),
            ';' => token(TokenKind::Semicolon, ";"),
            '\'' | '"' => token(TokenKind::Atom, &self.string(first)?),
            'a'..='z' | 'A'..='Z' | '_' => token(
                TokenKind::Word,
                &self.take_while(first, |c| c.is_ascii_alphanumeric() || "_.".contains(c)),
            ),
            '0'..='9' => {
                token(TokenKind::Atom, &self.take_while(first, |c| c.is_ascii_hexdigit() || c == 'x'))
            }
            other => Err(self.invalid(&other.to_string(), "a key, a string in quotes, a number, or a list")),
        }
    }

    /// Skips white space other than line ends, and comments.
    fn skip_blanks(&mut self) {
        while let Some(&c) = self.rest.peek() {
            match c {
                ' ' | '\t' | '\r' => {
                    self.rest.next();
                }
                '#' => while self.rest.next_if(|&c| c != '\n').is_some() {},
                _ => return,
            }
        }
    }

    fn take_while(&mut self, first: char, belongs: impl Fn(char) -> bool) -> String {
        let mut text = String::from(first);
        while let Some(c) = self.rest.next_if(|&c| belongs(c)) {
            text.push(c);
        }
        text
    }

    /// Reads the rest of a string, which must end on the line on which it starts.
    fn string(&mut self, quote: char) -> Result<String> {
        let mut text = String::new();
        loop {
            match self.rest.next_if(|&c| c != '\n') {
                None => return Err(self.invalid(&format!("{quote}{text}"), format!("a closing {quote}"))),
                Some(c) if c == quote => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let escaped = self.rest.next_if(|&c| c != '\n');
        match escaped {
            Some(c @ ('\\' | '\'' | '"')) => Ok(c),
            Some('a') => Ok('\u{7}'),
            Some('b') => Ok('\u{8}'),
            Some('f') => Ok('\u{c}'),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('v') => Ok('\u{b}'),
            other => {
                let found: String = std::iter::once('\\').chain(other).collect();
                Err(self.invalid(&found, r#"one of \\ \' \" \a \b \f \n \r \t \v"#))
            }
        }
    }

    /// Notes that a list begins.
    ///
    /// # Errors
    /// `too_deep` if it is in too many others.
    pub(super) fn enter_list(&mut self, too_deep: impl FnOnce() -> crate::error::Error) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(too_deep()) } else { Ok(()) }
    }

    /// Notes that a list has ended.
    pub(super) fn leave_list(&mut self) {
        self.depth -= 1;
    }

    fn invalid(&self, found: &str, expected: impl Into<String>) -> crate::error::Error {
        self.origin.at(self.line).invalid("syntax", found, expected)
    }
}
