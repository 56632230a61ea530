//! Other programs that the tests run. If one is not installed, the test fails and names its package.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::texts;

/// The command that runs a program of a Debian package.
pub(crate) fn program(name: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = directories.map(|dir| dir.join(name)).find(|file| file.is_file());
    let found = found.unwrap_or_else(|| panic!("{name} is not installed: apt-get install {package}"));
    let mut command = Command::new(found);
    command.stdin(Stdio::null());
    command
}

/// Runs a command, which must succeed; returns its output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}
