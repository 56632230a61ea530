//! Programs that the tests run beside ours. One that is not installed fails the test, and says the package.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::texts;

/// A program of a Debian package.
pub(crate) fn program(name: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|dir| dir.join(name)).find(|file| file.is_file());
    let found = found.unwrap_or_else(|| panic!("{name} is not installed: apt-get install {package}"));
    let mut command = Command::new(found);
    command.stdin(Stdio::null());
    command
}

/// Runs it; it must succeed. What it prints.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (said, complained) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{said}{complained}", output.status);
    said
}
