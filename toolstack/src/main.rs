//! The program `xpv`.

use std::process::ExitCode;

use clap::Parser;
use toolstack::cli::{self, Cli};
use toolstack::error::chain;
use toolstack::output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_logging(&cli);
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            output::message(chain(&error));
            ExitCode::FAILURE
        }
    }
}
