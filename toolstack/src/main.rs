//! The program `xpv`.

use std::process::ExitCode;

use clap::Parser;
use toolstack::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::log(&cli);
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xpv: {error}");
            ExitCode::FAILURE
        }
    }
}
