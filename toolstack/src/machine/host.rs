//! Starts the processes of a machine: hypervisor and dom0.

use std::path::PathBuf;
use std::time::Duration;

use super::process::{self, ChildProcess, ProcessOptions};
use crate::config::host::HostConfig;
use crate::dir::Dir;
use crate::error::Result;

/// How long a process may take to report that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts `xpv hypervisor` and waits until it is ready.
///
/// # Errors
/// [`Error::Other`](crate::error::Error::Other) if it exits or is not ready in time.
pub fn start_hypervisor(dir: &Dir, log: Option<PathBuf>) -> Result<ChildProcess> {
    let mut command = process::command(dir, &ProcessOptions { die_with_parent: true, log })?;
    command.arg("hypervisor");
    process::spawn_ready(command, "the hypervisor", READY_TIMEOUT)
}

/// Starts `xpv dom0` and waits until it is ready.
///
/// # Errors
/// [`Error::Other`](crate::error::Error::Other) if it exits or is not ready in time.
pub fn start_dom0(dir: &Dir, config: &HostConfig, log: Option<PathBuf>) -> Result<ChildProcess> {
    let mut command = process::command(dir, &ProcessOptions { die_with_parent: true, log })?;
    command.arg("dom0");
    for images in &config.images {
        command.arg("--images").arg(images);
    }
    if let Some(size) = config.base_cache {
        command.arg("--base-cache").arg(size.to_string());
    }
    if let Some(policy) = &config.policy {
        command.arg("--policy").arg(policy);
    }
    for bridge in &config.bridges {
        command.arg(if bridge.wire { "--wire" } else { "--bridge" }).arg(bridge.to_string());
    }
    if config.bridges.is_empty() {
        command.arg("--no-bridge");
    }
    process::spawn_ready(command, "dom0", READY_TIMEOUT)
}
