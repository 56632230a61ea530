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
    writeln!(io::stdout(), "{text}").map_err(not_written)
}

/// Prints a table. Each column has a heading and a least width, and is as wide as its longest value; the last one is not filled.
pub(crate) fn table<const N: usize>(columns: [(&str, usize); N], rows: &[[String; N]]) -> Result<()> {
    text(&aligned(columns, rows))
}

fn aligned<const N: usize>(columns: [(&str, usize); N], rows: &[[String; N]]) -> String {
    let headings = columns.map(|(heading, _)| heading.to_owned());
    let mut widths = columns.map(|(_, least)| least);
    for row in rows.iter().chain([&headings]) {
        for (width, value) in widths.iter_mut().zip(row) {
            *width = (*width).max(value.chars().count());
        }
    }
    let mut text = String::new();
    for row in [&headings].into_iter().chain(rows) {
        let mut line = String::new();
        for (width, value) in widths.iter().zip(row) {
            line.push_str(&format!("{value:<width$} "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints a text of whole lines to standard output.
pub(crate) fn text(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).map_err(not_written)
}

fn not_written(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => Error::io("writing to standard output", error),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_value_and_at_least_as_wide_as_in_xl() {
        let row = |vdev: &str, name: &str| [vdev.to_owned(), name.to_owned(), "x".to_owned()];
        let columns = [("Vdev", 6), ("Name", 5), ("BE", 2)];
        let rows = [row("268437504", "xvdaaa"), row("51712", "xvda")];
        let expected = "Vdev      Name   BE\n268437504 xvdaaa x\n51712     xvda   x\n";
        assert_eq!(aligned(columns, &rows), expected);
        assert_eq!(aligned(columns, &rows[1..]), "Vdev   Name  BE\n51712  xvda  x\n");
    }
}
