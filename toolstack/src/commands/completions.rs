//! `xpv completions`: prints a shell's completion script.

use std::io::Write;

use clap_complete::Shell;

use crate::error::{Error, Result};

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script for `program`, the whole command line.
pub fn run(args: &Args, mut program: clap::Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut program, "xpv", &mut text);
    std::io::stdout().write_all(&text).map_err(|e| Error::io("writing the completions", e))
}
