//! The secret by which a member's process is known to a successor of the broker that it has joined at.

use crate::{Error, Result};

/// Digits of a token's text.
const DIGITS: usize = size_of::<u128>() * 2;

/// 128 random bits. Who has them may take up the membership again, so that they are never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(u128);

impl Token {
    /// Draws a token.
    ///
    /// # Errors
    /// [`Error::Io`] where the system's source of randomness fails.
    pub(super) fn random() -> Result<Self> {
        let mut bytes = [0; size_of::<u128>()];
        getrandom::fill(&mut bytes).map_err(|e| Error::io("draw a token", std::io::Error::other(e)))?;
        Ok(Self::from_bytes(bytes))
    }

    /// The token of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Its bytes.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Its text in messages: 32 hexadecimal digits.
    pub(super) fn to_text(self) -> String {
        format!("{:0DIGITS$x}", self.0)
    }

    /// The token of a text; `None` if it is none.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let fine = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
        fine.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_the_same_in_text_and_bytes_and_is_not_printed() {
        let token = Token::from_bytes([7; 16]);
        assert_eq!(Token::from_text(&token.to_text()), Some(token));
        assert_eq!(Token::from_bytes(token.to_bytes()), token);
        assert_eq!(format!("{token:?}"), "Token");
        assert_ne!(Token::random().unwrap(), Token::random().unwrap());
        for text in ["", "+0", &"0".repeat(31), &"0".repeat(33), &format!("+{}", "0".repeat(31))] {
            assert_eq!(Token::from_text(text), None, "{text:?}");
        }
    }
}
