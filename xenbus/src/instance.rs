// Not a core: does I/O or calls a hypervisor.

//! What tells a device from another one at the same path.

use std::fmt::Write;
use std::io;

use ring_abi::xenbus::key::INSTANCE;

use crate::device_state::DeviceState;

/// A random text for the key [`INSTANCE`]: 128 bits in hexadecimal.
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

/// The text of a device's node, if it has one.
pub(crate) fn found(seen: &DeviceState) -> Option<String> {
    seen.own.get(INSTANCE).map(str::to_owned)
}
