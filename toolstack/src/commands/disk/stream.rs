//! `xpv disk stream`: copies what only the backing files have into a running guest's image, which has none then.

use super::follow;
use super::live::{DiskArgs, Outcome};
use crate::dir::Dir;
use crate::error::{Error, Result};

/// Copy what only the backing files have into the image of a running guest's disk, which then has none
///
/// If the command is interrupted, or dom0 is killed, nothing is lost, and the command goes on where it is run again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    disk: DiskArgs,
}

/// Streams the image, and waits for it.
///
/// # Errors
/// The disk's image has no backing file, one of the images cannot be read or written, or the command was interrupted.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let disk = args.disk.find(dir)?;
    follow::find_backing(&disk)?;
    match follow::change(&disk, "stream")? {
        Outcome::Made => Ok(()),
        // It was made before dom0 went away.
        Outcome::Replaced(now) if now.layers.len() == 1 => Ok(()),
        Outcome::Failed(why) => Err(Error::other(format!("stream: {why}"))),
        Outcome::Replaced(_) => Err(follow::replaced("stream")),
    }
}
