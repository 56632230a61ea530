//! `xpv disk commit`: moves what a running guest's image has into its backing file.

use super::follow;
use super::live::{DiskArgs, Outcome};
use crate::dir::Dir;
use crate::error::{Error, Result};

/// Move what the image of a running guest's disk has into its backing file
///
/// The image stays the guest's, emptied: what the guest writes meanwhile is in it again. The backing file, raw or qcow2, may have no other user, and
/// becomes as long as the disk. If the command is interrupted, or dom0 is killed, nothing is lost, and the command goes on where it is run again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    disk: DiskArgs,
}

/// Commits the image, and waits for it.
///
/// # Errors
/// The disk's image has no backing file, somebody else uses that, it cannot be written, or the command was interrupted.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let disk = args.disk.find(dir)?;
    follow::find_backing(&disk)?;
    match follow::change(&disk, "commit")? {
        Outcome::Made => Ok(()),
        Outcome::Failed(why) => Err(Error::other(format!("commit: {why}"))),
        Outcome::Replaced(_) => Err(follow::replaced("commit")),
    }
}
