//! The machine's own processes, as their supervisor starts them.

use std::path::PathBuf;
use std::time::Duration;

use super::process::{self, Fate, Owned};
use crate::config::host::BridgeConfig;
use crate::dir::Dir;
use crate::error::Result;

/// How long a process may take to be ready.
const BOUND: Duration = Duration::from_secs(20);

/// Starts broker and store; they are ready when this returns.
///
/// # Errors
/// They are not.
pub fn start_hypervisor(dir: &Dir, log: Option<PathBuf>) -> Result<Owned> {
    let mut command = process::command(dir, &Fate { ours: true, log })?;
    command.arg("hypervisor");
    process::spawn_ready(command, "the hypervisor", BOUND)
}

/// Starts dom0; it serves when this returns.
///
/// # Errors
/// It does not.
pub fn start_dom0(dir: &Dir, bridges: &[BridgeConfig], log: Option<PathBuf>) -> Result<Owned> {
    let mut command = process::command(dir, &Fate { ours: true, log })?;
    command.arg("dom0");
    for bridge in bridges {
        command.arg("--bridge").arg(bridge.to_string());
    }
    if bridges.is_empty() {
        command.arg("--no-bridge");
    }
    process::spawn_ready(command, "dom0", BOUND)
}
