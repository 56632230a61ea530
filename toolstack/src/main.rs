//! The program `xpv`.

use std::process::ExitCode;

use clap::Parser;
use toolstack::cli::{self, Cli};
use toolstack::error::chain;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_logging(&cli);
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xpv: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
