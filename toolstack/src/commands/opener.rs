//! `xpv opener`: the process that opens images for dom0.

use std::path::PathBuf;

use crate::dir::Dir;
use crate::error::Result;
use crate::opener::process;

/// Open images for the process that started this one: `xpv dom0` does
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Open images below this directory alone
    #[arg(long = "images", value_name = "DIR")]
    image_dirs: Vec<PathBuf>,

    /// Open this file too, to read it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Opens images until the process that started this one has ended.
///
/// `sandbox`: what the process does not need is given up first.
///
/// # Errors
/// Standard input is not a socket of that process, or a directory of images does not exist.
pub fn run(args: &Args, dir: &Dir, sandbox: bool) -> Result<()> {
    process::run(dir, &args.image_dirs, args.policy.as_deref(), sandbox)
}
