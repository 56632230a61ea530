//! `xpv destroy`: destroys a guest.

use crate::dir::Dir;
use crate::error::Result;
use crate::machine::{Machine, guest};

/// Destroy a guest at once, as if its power were cut
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,
}

/// Destroys the guest.
///
/// # Errors
/// There is no such guest, or a part of it could not be removed.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    guest::remove(&mut machine, domain.domid, &domain.name)
}
