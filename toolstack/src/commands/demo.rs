//! `xpv demo`: two guests do verified I/O on a machine of their own.

use std::path::PathBuf;
use std::time::Duration;

use crate::demo::driver::{self, Options};
use crate::error::{Error, Result};
use crate::output;

/// Run two guests with disks and network interfaces, and verify every byte of their I/O
///
/// Starts a store, a broker and dom0; makes a disk image with ext4 for each of two guests; the guests, each a
/// process of its own, write, flush, read back and verify their disks through rings, then stream to and ping each
/// other across the bridge. Prints a table, and fails if a single byte differs. Needs no privileges, and of other
/// programs only e2fsprogs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON, and nothing else
    #[arg(long)]
    json: bool,

    /// Size of the file each guest writes, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=16384))]
    size: u64,

    /// How long each load runs, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1500)]
    time: u64,

    /// Create this directory, which must not exist, for the machine and its images, and keep it
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// The demo could not run, or the verification failed.
pub fn run(args: &Args) -> Result<()> {
    let report = driver::run(&Options {
        bytes: args.size << 20,
        time: Duration::from_millis(args.time),
        pings: 2000,
        directory: args.keep.clone(),
        quiet: args.json,
    })?;
    if args.json {
        output::json(&report)?;
    } else {
        output::line(format_args!("{}", report.table().trim_end()))?;
    }
    match report.problems.len() {
        0 => Ok(()),
        problems => Err(Error::Other(format!("the demo found {problems} problems"))),
    }
}
