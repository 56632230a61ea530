//! `xpv up`: a whole machine, kept running.
use crate::error::Result;
/// Run a machine as host.toml describes it, and keep it running
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub fn run(_: &Args, _: Option<&std::path::Path>) -> Result<()> {
    Ok(())
}
