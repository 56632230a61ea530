//! `xpv disk`: makes, shows, checks and resizes images.

pub mod check;
pub mod create;
pub mod info;
pub mod resize;

use std::process::ExitCode;

use crate::error::Result;

/// Make, show, check and resize disk images, raw and qcow2
///
/// An image's format is what its name says: `qcow2:PATH`, `raw:PATH`, or the ending .qcow2; or --format. Without any of these it is raw, whatever
/// its bytes are, as a guest writes those of a raw image.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DiskCommand {
    Create(create::Args),
    Info(info::Args),
    Check(check::Args),
    Resize(resize::Args),
}

/// Runs the command; returns its status.
///
/// # Errors
/// What each command says.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        DiskCommand::Create(args) => create::run(args),
        DiskCommand::Info(args) => info::run(args),
        DiskCommand::Check(args) => return check::run(args),
        DiskCommand::Resize(args) => resize::run(args),
    }
    .map(|()| ExitCode::SUCCESS)
}
