//! What the user writes: an `xl.cfg` for a guest, disks and vifs in xl's own syntax, `host.toml` for a host.
//!
//! Everything here is text in, values out; each error names the place, the key, what stands there and what should.

pub mod cfg;
pub mod disk;
pub mod guest;
pub mod host;
mod params;
pub mod rate;
pub mod vif;

pub use disk::DiskSpec;
pub use guest::GuestConfig;
pub use host::HostConfig;
pub use vif::VifSpec;

use crate::error::Origin;

/// What was accepted though it has no effect here: one line each, to be shown to the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(Vec<String>);

impl Warnings {
    /// Adds that `key` has no effect, and why.
    pub fn no_effect(&mut self, origin: &Origin, key: &str, why: &str) {
        self.0.push(format!("{origin}: {key}: no effect: {why}"));
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// Writes them to standard error.
    pub fn show(&self) {
        for line in &self.0 {
            eprintln!("xpv: warning: {line}");
        }
    }
}
