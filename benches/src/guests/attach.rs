//! One more device of a guest, from before the toolstack writes its nodes until it is connected.

use super::population::{Population, interface_nodes, open_disk, open_interface, text};
use crate::process::BOUND;
use std::time::Instant;
use testkit::block::XVDA;
use toolstack::machine::attached::Attached;
use toolstack::machine::progress::{self, Closed};

/// The second disk's number, xvdb.
const XVDB: u32 = XVDA + 16;

/// Attaches a disk to the guest of that number, and detaches it again. Milliseconds until it was connected.
///
/// # Errors
/// It does not connect, or close.
pub(super) fn disk(population: &mut Population, number: usize) -> Result<f64, String> {
    let domain = population.guests[number].domain.clone();
    let new = population.disk_nodes(grant_table::GrantTable::domid(&*domain), XVDB)?;
    let start = Instant::now();
    let attached = population.attach(&new)?;
    let disk = open_disk(&domain, XVDB, blkfront::Options::default())?;
    let time = start.elapsed();
    attached.request_close(&mut population.toolstack.store).map_err(text)?;
    disk.close().map_err(text)?;
    detach(population, &attached)?;
    Ok(time.as_secs_f64() * 1e3)
}

/// Attaches an interface to the guest of that number, and detaches it again. Milliseconds until it was connected.
///
/// # Errors
/// As [`disk`].
pub(super) fn interface(population: &mut Population, number: usize) -> Result<f64, String> {
    let domain = population.guests[number].domain.clone();
    let new = interface_nodes(grant_table::GrantTable::domid(&*domain), 1);
    let start = Instant::now();
    let attached = population.attach(&new)?;
    let nic = open_interface(&domain, 1)?;
    let time = start.elapsed();
    attached.request_close(&mut population.toolstack.store).map_err(text)?;
    nic.close().map_err(text)?;
    detach(population, &attached)?;
    Ok(time.as_secs_f64() * 1e3)
}

/// Waits until both ends are closed, and removes the nodes.
fn detach(population: &mut Population, attached: &Attached) -> Result<(), String> {
    let store = &mut population.toolstack.store;
    match progress::close(store, attached, BOUND).map_err(text)? {
        Closed::Yes => attached.remove(store).map_err(text),
        other => Err(format!("{}: not closed: {other:?}", attached.name)),
    }
}
