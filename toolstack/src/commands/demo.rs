//! `xpv demo`.
use crate::error::Result;
/// Show everything at work
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub fn run(_: &Args) -> Result<()> {
    Ok(())
}
