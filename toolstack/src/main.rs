//! The program `xpv`.

use std::process::ExitCode;

use clap::Parser;
use toolstack::cli::{self, Cli};
use toolstack::error::{Error, chain};
use toolstack::output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_logging(&cli);
    match cli.run() {
        Ok(code) => code,
        // As a program that SIGPIPE ends: no message, and the status that a shell gives it.
        Err(Error::OutputClosed) => ExitCode::from(128 + nix::libc::SIGPIPE as u8),
        Err(error) => {
            output::message(chain(&error));
            ExitCode::FAILURE
        }
    }
}
