//! Builds programs of this tree, or of another revision's checkout, with the release profile.

use crate::missing::not_started;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of a package of the workspace.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Target {
    /// The package.
    pub package: &'static str,
    /// Its program.
    pub program: &'static str,
}

/// This crate's main program.
pub const BENCHES: Target = Target { package: "benches", program: "benches" };
/// The program that rows of whole machines measure.
pub const XPV: Target = Target { package: "toolstack", program: "xpv" };
/// The peer that forwards between two taps.
pub const TAPFWD: Target = Target { package: "benches", program: "tapfwd" };
/// The peer that answers events of an eventfd.
pub const EVENTFD_ECHO: Target = Target { package: "benches", program: "eventfd_echo" };

/// Builds a program of this tree in the directory that this program was built in, and gives its path.
///
/// # Errors
/// It does not build.
pub fn build_here(target: Target) -> Result<PathBuf, String> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    build(&tree, &target_directory(), target)
}

/// Builds a program of the workspace in `tree`, and gives its path. Cargo tells on stderr what it does; it has nothing to do if
/// this was done before.
///
/// # Errors
/// It does not build.
pub fn build(tree: &Path, directory: &Path, target: Target) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--locked", "-p", target.package, "--bin", target.program])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(directory)
        .current_dir(tree)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| not_started("cargo", "cargo", &e))?;
    if !output.status.success() {
        return Err(format!("cargo build ended with {}; its errors are above", output.status));
    }
    executable(&String::from_utf8_lossy(&output.stdout), target.program)
        .ok_or_else(|| format!("cargo named no program `{}`", target.program))
}

/// The directory that cargo built this program in: it marks it as a cache.
pub fn target_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let marked = program.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    marked.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), Path::to_owned)
}

/// The path of `program` among cargo's messages.
fn executable(messages: &str, program: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        target: Named,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.filter(|message| message.target.name == program).find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_found_among_messages_of_cargo() {
        let messages = "{\"reason\":\"build-script-executed\"}\n\
            {\"target\":{\"name\":\"benches\"},\"executable\":null}\n\
            {\"target\":{\"name\":\"benches\"},\"executable\":\"/t/release/benches\"}\n";
        assert_eq!(executable(messages, "benches").unwrap(), Path::new("/t/release/benches"));
        assert_eq!(executable(messages, "xpv"), None);
    }
}
