//! `xpv completions`: what a shell needs to complete our command lines.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Error, Result};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell they are for
    shell: Shell,
}

/// Prints them.
///
/// # Errors
/// Standard output is closed.
pub fn run(args: &Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "xpv", &mut text);
    std::io::stdout().write_all(&text).map_err(|e| Error::io("writing the completions", e))
}
