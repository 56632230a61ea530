// Not a core: does I/O or calls a hypervisor.

//! What tells a device from another one at the same path.

use std::fmt::Write;
use std::io;

/// A random text for the key [`INSTANCE`](ring_abi::xenbus::key::INSTANCE): 128 bits in hexadecimal.
///
/// # Errors
/// The system's source of randomness failed.
pub(crate) fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
