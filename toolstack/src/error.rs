//! Errors of this program, and how they are shown: as one line, with every cause once.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A result of this program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a piece of input was written: `guest.cfg:3`, or the name of an argument of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    name: Arc<str>,
    line: Option<usize>,
    /// It is a text of one line: [`Origin::at`] adds nothing.
    is_one_line: bool,
}

impl Origin {
    /// A whole file; [`Origin::at`] names a line of it.
    pub fn file(path: &Path) -> Origin {
        Origin { name: path.display().to_string().into(), line: None, is_one_line: false }
    }

    /// An argument of the command line.
    pub fn argument(name: &str) -> Origin {
        Origin { name: name.into(), line: None, is_one_line: false }
    }

    /// A setting on the command line, such as `memory=512`: it is its own name.
    pub fn setting(text: &str) -> Origin {
        Origin { name: text.into(), line: None, is_one_line: true }
    }

    /// A line of the same file; the first line is 1.
    pub fn at(&self, line: usize) -> Origin {
        Origin { line: Some(line).filter(|_| !self.is_one_line), ..self.clone() }
    }

    /// The file's or argument's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The line, if it is one.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Returns the error that `key` has the value `found` here, where `expected` is required.
    pub fn invalid(&self, key: &str, found: &str, expected: impl Into<String>) -> Error {
        Error::Input {
            origin: self.clone(),
            key: key.to_owned(),
            found: Some(excerpt(found)),
            expected: expected.into(),
        }
    }

    /// Returns the error that `key` has no value here.
    pub fn missing(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Input { origin: self.clone(), key: key.to_owned(), found: None, expected: expected.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Why a command failed. `Display` leaves out what [`std::error::Error::source`] returns: [`chain`] shows both.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file or an argument has an invalid value.
    #[error("{origin}: {key}: {}expected {expected}", describe_found(.found))]
    Input {
        /// Where the value was written.
        origin: Origin,
        /// What it is the value of, e.g. `disk: access`.
        key: String,
        /// The value; `None` when there is none.
        found: Option<String>,
        /// The values that are valid.
        expected: String,
    },
    /// A system call on a file failed.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done with the file.
        what: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system call's error.
        source: io::Error,
    },
    /// Nobody reads standard output any more: whoever did has what it wanted (`xpv list | head -n 1`).
    #[error("nobody reads standard output")]
    OutputClosed,
    /// A program that this command needs is not installed.
    #[error("{program} is not installed (it is in the package {package})")]
    NotInstalled {
        /// The program's name.
        program: &'static str,
        /// The name of its package in Debian.
        package: &'static str,
    },
    /// A XenStore request failed.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// A call of the hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// A directory of in-flight logs cannot be used.
    #[error(transparent)]
    Inflight(#[from] inflight::Error),
    /// Any other error, as text.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// An error that is only text.
    pub fn other(what: impl Into<String>) -> Error {
        Error::Other(what.into())
    }

    /// The error of a system call that was made to do `what`.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Io { what: what.into(), source: source.into() }
    }

    /// The error of a system call that was made to do `what` with the file `path`.
    pub fn file(path: impl Into<PathBuf>, what: &'static str, source: impl Into<io::Error>) -> Error {
        Error::File { path: path.into(), what, source: source.into() }
    }
}

/// Shows an error and its causes, outermost first, joined by `: `.
///
/// ```
/// use toolstack::error::{Error, chain};
///
/// let error = Error::file("/srv/a.img", "opening", std::io::Error::other("out of order"));
/// assert_eq!(chain(&error).to_string(), "/srv/a.img: opening: out of order");
/// ```
pub fn chain(error: &dyn std::error::Error) -> Chain<'_> {
    Chain(error)
}

/// An error that is displayed with its causes; see [`chain`].
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // The `Display` of some errors includes the text of their source.
            if !shown.contains(&text) {
                write!(f, ": {text}")?;
                shown = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

fn describe_found(found: &Option<String>) -> String {
    match found {
        Some(found) => format!("found {found:?}, "),
        None => "missing, ".into(),
    }
}

/// The first 80 characters of a value: enough to recognise it, too few to fill a screen.
fn excerpt(value: &str) -> String {
    const MAX_CHARS: usize = 80;
    match value.char_indices().nth(MAX_CHARS) {
        None => value.to_owned(),
        Some((at, _)) => format!("{}...", &value[..at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_error_is_one_line_with_place_key_found_and_expected() {
        let origin = Origin::file(Path::new("guest.cfg")).at(3);
        let error = origin.invalid("disk: access", "rx\n", "ro, r, rw or w");
        assert_eq!(error.to_string(), r#"guest.cfg:3: disk: access: found "rx\n", expected ro, r, rw or w"#);
        let error = origin.missing("name", "the guest's name");
        assert_eq!(error.to_string(), "guest.cfg:3: name: missing, expected the guest's name");
        assert!(origin.invalid("k", &"x".repeat(9000), "y").to_string().len() < 200);
    }

    #[test]
    fn chain_of_unreadable_file_names_the_system_error_once() {
        let path = Path::new("/no/such/guest.cfg");
        let error = crate::config::GuestConfig::read(path, &[]).unwrap_err();
        let text = chain(&error).to_string();
        assert!(text.starts_with("/no/such/guest.cfg: reading the guest's cfg: No such file"), "{text}");
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
    }

    #[test]
    fn chain_of_missing_store_socket_names_the_system_error_once() {
        let error = Error::from(xenstore::Client::open_unix("/no/such/xenstored.sock").err().unwrap());
        let text = chain(&error).to_string();
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
    }

    #[test]
    fn chain_shows_each_cause_once_whether_or_not_display_includes_it() {
        #[derive(Debug, thiserror::Error)]
        enum Nested {
            #[error("outer")]
            Plain(#[source] io::Error),
            #[error("outer: {0}")]
            Including(#[source] io::Error),
        }
        let cause = || io::Error::from_raw_os_error(nix::libc::ENOENT);
        let text = chain(&Nested::Plain(cause())).to_string();
        assert_eq!(text, chain(&Nested::Including(cause())).to_string());
        assert!(text.starts_with("outer: No such file"), "{text}");
    }
}
