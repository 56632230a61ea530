//! Configuration: an `xl.cfg` for a guest, disks and vifs in xl's syntax, `host.toml` for a host.
//!
//! These are parsers from text to values; each error names the line, the key, the value found and what is valid.

pub mod cfg;
pub mod disk;
pub mod guest;
pub mod host;
mod params;
pub mod rate;
pub mod rx;
pub mod vif;

pub use disk::DiskSpec;
pub use guest::GuestConfig;
pub use host::HostConfig;
pub use vif::VifSpec;

use crate::error::Origin;
use crate::output;

/// Settings that were accepted but have no effect: one line each, to be shown to the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(Vec<String>);

impl Warnings {
    /// Adds that `key` has no effect, and why.
    pub fn no_effect(&mut self, origin: &Origin, key: &str, why: &str) {
        self.0.push(format!("{origin}: {key}: no effect: {why}"));
    }

    /// The warnings, one line each.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// Writes the warnings to standard error.
    pub fn show(&self) {
        for line in &self.0 {
            output::message(format_args!("warning: {line}"));
        }
    }
}
