//! What commands print. A line that cannot be written is an error of a command whose purpose it is, and of no other: a full
//! disk or a closed pipe costs a daemon its log, not its guests.

use std::fmt::{Arguments, Display};
use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints one JSON value to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Other(e.to_string()))?;
    line(format_args!("{text}"))
}

/// Prints one line to standard output.
pub(crate) fn line(text: Arguments<'_>) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(|e| Error::io("writing to standard output", e))
}

/// Prints a text of whole lines to standard output.
pub(crate) fn text(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("writing to standard output", e))
}

/// Prints an error or a warning to standard error, which may be closed.
pub fn message(text: impl Display) {
    let _ = writeln!(io::stderr(), "xpv: {text}");
}

/// Prints how far something is to standard error, which may be closed.
pub(crate) fn progress(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// Standard error for the log: what cannot be written is dropped.
#[derive(Debug)]
pub(crate) struct LogStderr;

impl Write for LogStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
