//! How a node's value, and the form expected of it, appear in errors.

use core::fmt;

/// The longest part of a value that an error shows, in characters.
const EXCERPT_MAX: usize = 64;

/// The start of a peer's value: enough to see what is wrong with it, too little to fill a log.
#[derive(Clone, Copy, Debug)]
pub struct Excerpt<'a>(pub &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(EXCERPT_MAX) {
            None => f.write_str(self.0),
            Some((at, _)) => write!(f, "{}...", &self.0[..at]),
        }
    }
}

/// A type's name without its path, as the form expected: `u32`, `XenbusState`.
pub fn type_name<T>() -> &'static str {
    let name = core::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}
