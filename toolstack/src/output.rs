//! Machine-readable output.

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints one JSON value to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Other(e.to_string()))?;
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("writing to standard output", e))
}
