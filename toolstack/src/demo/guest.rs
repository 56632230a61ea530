//! A guest of the demo: joins, opens its disk and its interface, and does as it is ordered.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkfront::{Disk, Options};
use hypervisor::Hypervisor;
use netfront::Nic;
use xenstore::Client;

use super::disk;
use super::net::Wire;
use super::words::{Event, Order};
use crate::error::{Error, Result};

/// Pages of the disk's ring as a power of two.
const RING_PAGE_ORDER: u32 = 2;
/// How long the interface may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does what is ordered on `orders` until told to quit or the stream ends; tells of it on `events`.
///
/// # Errors
/// The first thing that went wrong, which was told too.
pub fn run(hv: &Arc<dyn Hypervisor>, vdev: u32, orders: impl BufRead, events: impl Write) -> Result<()> {
    let mut teller = Teller { events };
    let outcome = obey(hv, vdev, orders, &mut teller);
    if let Err(error) = &outcome {
        teller.tell(&Event::Failed(error.to_string()));
    }
    outcome
}

fn obey(
    hv: &Arc<dyn Hypervisor>,
    vdev: u32,
    orders: impl BufRead,
    teller: &mut Teller<impl Write>,
) -> Result<()> {
    let store = || Ok::<_, Error>(Client::new(hv.store()?));
    let options = Options { ring_page_order: RING_PAGE_ORDER, ..Options::default() };
    let mut disk =
        Disk::open_with(hv.clone(), store()?, vdev, options).map_err(|e| Error::Other(e.to_string()))?;
    let mut nic = open_nic(hv, store()?)?;
    teller.tell(&Event::Ready(nic.mac()));
    for line in orders.lines() {
        let line = line.map_err(|e| Error::io("reading orders", e))?;
        match serde_json::from_str(&line).map_err(|e| Error::Other(format!("an order: {e}")))? {
            Order::Disk(plan) => {
                let result = disk::run(&mut disk, &plan, &mut |event| teller.tell(&event))?;
                teller.tell(&Event::Disk(result));
            }
            Order::Serve(seed) => {
                let served = Wire::new(&mut nic, seed).serve()?;
                teller.tell(&Event::Served(served));
            }
            Order::Drive(plan) => {
                let mut wire = Wire::new(&mut nic, plan.seed);
                let result = wire.drive(&plan, &mut |event| teller.tell(&event))?;
                teller.tell(&Event::Driven(result));
            }
            Order::Quit => break,
        }
    }
    nic.close().map_err(|e| Error::Other(e.to_string()))?;
    disk.close().map_err(|e| Error::Other(e.to_string()))
}

fn open_nic(hv: &Arc<dyn Hypervisor>, store: Client) -> Result<Nic> {
    let failed = |e: netfront::Error| Error::Other(format!("vif: {e}"));
    let mut nic = Nic::open(hv.clone(), store, 0, netfront::Config::default()).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    while !nic.is_up() {
        if Instant::now() >= deadline {
            return Err(Error::Other(format!("vif: not up after {} s", PATIENCE.as_secs())));
        }
        nic.wait(false, Duration::from_millis(100)).map_err(failed)?;
    }
    Ok(nic)
}

struct Teller<W> {
    events: W,
}

impl<W: Write> Teller<W> {
    /// Nobody to tell is nobody to work for: the next order does not come.
    fn tell(&mut self, event: &Event) {
        if let Ok(text) = serde_json::to_string(event) {
            let _ = writeln!(self.events, "{text}").and_then(|()| self.events.flush());
        }
    }
}
