//! `xpv destroy`: an end to a guest.

use crate::dir::Dir;
use crate::error::Result;
use crate::machine::{Machine, guest};

/// End a guest at once, as if its power were cut
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name or number
    domain: String,
}

/// Ends it.
///
/// # Errors
/// There is no such guest.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    guest::remove(&mut machine, domain.domid, &domain.name)
}
