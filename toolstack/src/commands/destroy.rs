//! `xpv destroy`: destroys a guest.

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::attached::Attached;
use crate::machine::{Machine, guest};

/// Destroy a guest at once, as if its power were cut
///
/// Fails if dom0 has not released its images and interfaces soon after: do not use them elsewhere then.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,
}

/// Destroys the guest.
///
/// # Errors
/// There is no such guest, a part of it could not be removed, or dom0 still has what its devices used.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let mut machine = Machine::connect(dir)?;
    let domain = machine.find_guest(&args.domain)?;
    let unreleased = guest::remove(&mut machine, domain.domid, &domain.name)?;
    if unreleased.is_empty() {
        return Ok(());
    }
    let unreleased: Vec<_> = unreleased.iter().map(Attached::not_released).collect();
    Err(Error::Other(format!("{} was destroyed, but {}", domain.name, unreleased.join(", "))))
}
