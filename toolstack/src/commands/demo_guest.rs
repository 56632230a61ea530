//! `xpv demo-guest`.
use crate::error::Result;
/// A guest of the demo
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub fn run(_: &Args, _: &crate::dir::Dir) -> Result<()> {
    Ok(())
}
