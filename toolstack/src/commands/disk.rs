//! `xpv disk`: makes, shows, checks, resizes, keeps and merges images.

pub mod check;
pub mod commit;
pub mod create;
mod follow;
pub mod info;
mod live;
pub mod resize;
pub mod snapshot;
pub mod stream;

use std::process::ExitCode;

use crate::dir::Dir;
use crate::error::Result;

/// Make, show, check, resize, keep and merge disk images, raw and qcow2
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
    Snapshot(snapshot::Args),
    Commit(commit::Args),
    Stream(stream::Args),
}

/// Runs the command; returns its status.
///
/// # Errors
/// What each command says.
pub fn run(args: &Args, dir: impl Fn() -> Result<Dir>) -> Result<ExitCode> {
    match &args.command {
        DiskCommand::Create(args) => create::run(args),
        DiskCommand::Info(args) => info::run(args),
        DiskCommand::Check(args) => return check::run(args),
        DiskCommand::Resize(args) => resize::run(args, dir),
        DiskCommand::Snapshot(args) => dir().and_then(|dir| snapshot::run(args, &dir)),
        DiskCommand::Commit(args) => dir().and_then(|dir| commit::run(args, &dir)),
        DiskCommand::Stream(args) => dir().and_then(|dir| stream::run(args, &dir)),
    }
    .map(|()| ExitCode::SUCCESS)
}
