//! The JSON that `xl -N` prints: libxl's of a `libxl_device_disk` or `libxl_device_nic`, without members of default value.

use serde::{Serialize, Serializer};
use serde_json::ser::PrettyFormatter;

use crate::error::{Error, Result};

/// Formats a value as libxl does, which indents by four blanks and ends with a line end.
///
/// # Errors
/// [`Error::Other`] if the value has no JSON.
pub fn to_string(value: &impl Serialize) -> Result<String> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value.serialize(&mut serializer).map_err(|e| Error::Other(e.to_string()))?;
    // yajl writes an empty object over two lines.
    let text = if text == b"{}" { "{\n\n}".into() } else { String::from_utf8_lossy(&text).into_owned() };
    Ok(text + "\n")
}

/// A `libxl_defbool` that is not the default.
pub(super) fn defbool<S: Serializer>(value: &Option<bool>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *value == Some(true) { "True" } else { "False" })
}

/// A bool that is an integer in libxl; it is skipped if false.
pub(super) fn integer<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(u8::from(*value))
}

pub(super) fn is_false(value: &bool) -> bool {
    !*value
}
