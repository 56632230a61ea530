//! What goes wrong, as the one line that the user is shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A result of this program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a piece of input was written: `guest.cfg:3`, or what was given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    source: Arc<str>,
    line: Option<usize>,
}

impl Origin {
    /// A whole file; [`Origin::at`] names a line of it.
    pub fn file(path: &Path) -> Origin {
        Origin { source: path.display().to_string().into(), line: None }
    }

    /// An argument of the command line.
    pub fn argument(name: &str) -> Origin {
        Origin { source: name.into(), line: None }
    }

    /// A line of the same source; the first one is 1.
    pub fn at(&self, line: usize) -> Origin {
        Origin { source: Arc::clone(&self.source), line: Some(line) }
    }

    /// The error that here, for `key`, one thing stands and another should.
    pub fn wrong(&self, key: &str, found: &str, expected: impl Into<String>) -> Error {
        Error::Input {
            origin: self.clone(),
            key: key.to_owned(),
            found: Some(excerpt(found)),
            expected: expected.into(),
        }
    }

    /// The error that `key` is not given here at all.
    pub fn missing(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Input { origin: self.clone(), key: key.to_owned(), found: None, expected: expected.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// Why a command failed. `Display` is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user wrote something that cannot be.
    #[error("{origin}: {key}: {}expected {expected}", was(.found))]
    Input {
        /// Where it stands.
        origin: Origin,
        /// What it is the value of, e.g. `disk: access`.
        key: String,
        /// What stands there; `None` when nothing does.
        found: Option<String>,
        /// What should.
        expected: String,
    },
    /// A file cannot be used.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done with it.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program that this command needs is not installed.
    #[error("{program} is not installed (it is in the package {package})")]
    NotInstalled {
        /// Its name.
        program: &'static str,
        /// Debian's name of its package.
        package: &'static str,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// The hypervisor said no.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// In words.
    pub fn other(what: impl Into<String>) -> Error {
        Error::Other(what.into())
    }

    /// The system's answer to `what`.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Io { what: what.into(), source: source.into() }
    }

    /// The system's answer to doing `what` with a file.
    pub fn file(path: impl Into<PathBuf>, what: &'static str, source: impl Into<io::Error>) -> Error {
        Error::File { path: path.into(), what, source: source.into() }
    }
}

fn was(found: &Option<String>) -> String {
    match found {
        Some(found) => format!("found {found:?}, "),
        None => "missing, ".into(),
    }
}

/// The start of a value: enough to recognise it, too little to fill a screen.
fn excerpt(value: &str) -> String {
    const MOST: usize = 80;
    match value.char_indices().nth(MOST) {
        None => value.to_owned(),
        Some((at, _)) => format!("{}...", &value[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_error_is_one_line_with_place_key_found_and_expected() {
        let origin = Origin::file(Path::new("guest.cfg")).at(3);
        let error = origin.wrong("disk: access", "rx\n", "ro, r, rw or w");
        assert_eq!(error.to_string(), r#"guest.cfg:3: disk: access: found "rx\n", expected ro, r, rw or w"#);
        let error = origin.missing("name", "the guest's name");
        assert_eq!(error.to_string(), "guest.cfg:3: name: missing, expected the guest's name");
        assert!(origin.wrong("k", &"x".repeat(9000), "y").to_string().len() < 200);
    }
}
