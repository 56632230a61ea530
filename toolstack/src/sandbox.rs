//! What a process of a machine gives up when it starts, so that a guest that has taken it over gains little more than what the process
//! serves: docs/security.md has the table by role, and says what only a process apart could separate.
//!
//! [`enter`] is called before the process has other threads.

mod capabilities;
mod files;
mod system_calls;
pub mod user;

use std::fmt;
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
    /// Opens images for the backends.
    Opener,
}

/// What is in force of a process's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The capabilities that are left; `None` if nothing was given up.
    capabilities: Option<String>,
    /// Which files can be opened.
    pub files: Files,
    /// Whether sockets can be connected.
    connects: bool,
}

impl InForce {
    /// Refuses to connect sockets, for good and to all threads, if this process has a sandbox: once it has connected to what it needs.
    ///
    /// # Errors
    /// [`Error::Other`] if the kernel refuses.
    pub fn refuse_connecting(&mut self) -> Result<()> {
        if self.capabilities.is_some() {
            system_calls::refuse_connecting().map_err(|e| failed("seccomp", &e))?;
            self.connects = false;
        }
        Ok(())
    }
}

/// The files that a process can open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// All that its user may.
    Any,
    /// All that exist and that its user may: none is created, removed, renamed or written to.
    Existing,
    /// Those of the machine's directory, and of the kernel what its role needs.
    OfItsRole,
    /// As far as this kernel can restrict them to those.
    OfItsRoleInPart,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(capabilities) = &self.capabilities else { return f.write_str("none") };
        let connects = if self.connects { "" } else { ", no connecting" };
        let files = match self.files {
            Files::Any => "any",
            Files::Existing => "any that exist, to open alone",
            Files::OfItsRole => "its own",
            Files::OfItsRoleInPart => "its own in part",
        };
        write!(f, "seccomp{connects}; files: {files}; capabilities: {capabilities}")
    }
}

/// Gives up what the role does not need, for good, unless it is not `wanted`. `dir` is the machine's directory, which exists.
///
/// Only what this kernel does not know is left out, with a warning that names it.
///
/// # Errors
/// [`Error::Other`] if the kernel refuses a step.
pub fn enter(role: Role, dir: &Path, wanted: bool) -> Result<InForce> {
    if !wanted {
        return Ok(InForce { capabilities: None, files: Files::Any, connects: true });
    }
    // No core dump with guests' data, and no debugger without privileges.
    prctl::set_dumpable(false).map_err(|e| failed("PR_SET_DUMPABLE", &e))?;
    prctl::set_no_new_privs().map_err(|e| failed("PR_SET_NO_NEW_PRIVS", &e))?;
    let capabilities = capabilities::keep(role).map_err(|e| failed("capabilities", &e))?;
    let files = files::restrict(role, dir).map_err(|e| failed("Landlock", &e))?;
    system_calls::restrict(role).map_err(|e| failed("seccomp", &e))?;
    Ok(InForce { capabilities: Some(capabilities), files, connects: role != Role::Opener })
}

fn failed(step: &str, error: &dyn fmt::Display) -> Error {
    Error::Other(format!("sandbox: {step}: {error} (--no-sandbox runs without one)"))
}
