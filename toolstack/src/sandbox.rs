//! What a process of a machine gives up when it starts, so that a guest that has taken it over gains little more than what the process
//! serves: docs/security.md has the table by role, and says what only a process apart could separate.
//!
//! [`enter`] is called before the process has other threads.

mod capabilities;
mod files;
mod system_calls;

use std::path::Path;

use nix::sys::prctl;

use crate::error::{Error, Result};

/// What a process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Broker and store of a local machine.
    Hypervisor,
    /// The backends.
    Dom0,
    /// The frontends of a guest.
    Guest,
}

/// Gives up what the role does not need, for good. `dir` is the machine's directory, which exists.
///
/// Only what this kernel does not know is left out, with a warning that names it. Returns which files can still be opened, in words.
///
/// # Errors
/// [`Error::Other`] if the kernel refuses a step.
pub fn enter(role: Role, dir: &Path) -> Result<&'static str> {
    let failed = |step: &str, e: &dyn std::fmt::Display| {
        Error::Other(format!("sandbox: {step}: {e} (--no-sandbox runs without one)"))
    };
    // No core dump with guests' data, and no debugger without privileges.
    prctl::set_dumpable(false).map_err(|e| failed("PR_SET_DUMPABLE", &e))?;
    prctl::set_no_new_privs().map_err(|e| failed("PR_SET_NO_NEW_PRIVS", &e))?;
    let capabilities = capabilities::keep(role).map_err(|e| failed("capabilities", &e))?;
    let files = files::restrict(role, dir).map_err(|e| failed("Landlock", &e))?;
    system_calls::restrict(role).map_err(|e| failed("seccomp", &e))?;
    tracing::info!(
        capabilities,
        files,
        "sandbox: no new privileges, no other program, no debugging, no mounts"
    );
    Ok(files)
}
