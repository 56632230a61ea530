//! `xpv dom0`: the backends, and the bridges between guests and the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use blkback::{DataPath, Tuning, VbdDriver};
use hypervisor::local::Domain;
use hypervisor::xen::Xen;
use hypervisor::{DomId, Hypervisor, InflightDir};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xenstore::Client;
use xenstore::driver::{self, BackDriver};

use crate::backend::bridges::Bridges;
use crate::backend::claimed::Unclaimed;
use crate::backend::images::Images;
use crate::backend::leftovers;
use crate::config::host::BridgeConfig;
use crate::config::vif::DEFAULT_BRIDGE;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::{Machine, process};

/// Serve disks and network interfaces as domain 0
///
/// Takes over all devices that there are: one that was killed can be started again, and guests go on.
///
/// With --xen it serves a real Xen host, in dom0 or in any driver domain, beside xl: vbds with a line such as
/// disk=["format=raw,vdev=xvda,access=rw,script=/bin/true,target=/srv/a.img"], vifs as an interface vifDOMID.DEVID
/// for xl's own scripts, or on a bridge of this program that is named by --bridge. docs/xen.md has it all.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve the domain of a real Xen host that this runs in
    #[arg(long)]
    xen: bool,

    /// A bridge, and ports of it towards the host: xenbr0, or xenbr0=tap:host0,packet:eth1
    /// [default: xenbr0, and none with --xen]
    #[arg(long = "bridge", value_name = "NAME[=PORT,...]")]
    bridges: Vec<BridgeConfig>,

    /// No bridge at all
    #[arg(long, conflicts_with = "bridges")]
    no_bridge: bool,

    /// How disks reach guests' pages [default: map, and persist with --xen]
    #[arg(long, value_name = "HOW")]
    reach: Option<ReachArg>,
}

/// How disks reach guests' pages; where the kernel's I/O cannot be done in mapped pages, they are copied in any
/// case.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ReachArg {
    /// Mapped for each request
    Map,
    /// Kept mapped where the frontend uses the same ones again (feature-persistent), and copied from there
    Persist,
    /// Copied by the hypervisor
    Copy,
}

/// Serves until told to end, or the machine is gone.
///
/// # Errors
/// A bridge's port cannot be had, another process is domain 0, or the machine is gone.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let stop = process::stop_signal()?;
    // Before anything is joined: what cannot be had must leave nothing behind.
    let bridges = Bridges::start(&args.bridges()?)?;
    match args.xen {
        true => xen(bridges, args.tuning(), dir, stop.as_fd()),
        false => local(bridges, args.tuning(), dir, stop.as_fd()),
    }
}

impl Args {
    fn tuning(&self) -> Tuning {
        let reach = match (self.reach, self.xen) {
            (Some(ReachArg::Map), _) | (None, false) => DataPath::Map,
            (Some(ReachArg::Persist), _) | (None, true) => DataPath::Persistent,
            (Some(ReachArg::Copy), _) => DataPath::Copy,
        };
        // A round's system calls cost more where they are Xen's business too.
        let batch = if self.xen { 64 } else { Tuning::default().batch };
        Tuning { data_path: reach, batch, ..Tuning::default() }
    }

    fn bridges(&self) -> Result<Vec<BridgeConfig>> {
        let usual =
            || DEFAULT_BRIDGE.parse().map_err(|e| Error::Other(format!("bridge {DEFAULT_BRIDGE}: {e}")));
        match self.bridges.is_empty() && !self.no_bridge && !self.xen {
            true => Ok(vec![usual()?]),
            false => Ok(self.bridges.clone()),
        }
    }
}

fn local(bridges: Bridges, tuning: Tuning, dir: &Dir, stop: BorrowedFd<'_>) -> Result<()> {
    let hv: Arc<dyn Hypervisor> = Arc::new(Domain::join(dir.path(), DomId::DOM0)?);
    Machine::publish_bridges(&mut Client::new(hv.store()?), bridges.names())?;
    let mut vbds = VbdDriver::new(hv.clone());
    vbds.set_tuning(tuning);
    let vifs =
        netback::Driver::new(hv.clone(), netback::Config::default(), move |_, keys| bridges.ours(keys));
    serve(&*hv, vbds, vifs, stop)
}

fn xen(bridges: Bridges, tuning: Tuning, dir: &Dir, stop: BorrowedFd<'_>) -> Result<()> {
    let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open()?);
    let keep = InflightDir::new(dir.inflight())?;
    let mut images = Images::new(Client::new(hv.store()?));
    let mut vbds =
        VbdDriver::with_opener(hv.clone(), Box::new(move |device, keys| images.open(device, keys)));
    vbds.set_tuning(tuning);
    leftovers::clear(&mut Client::new(hv.store()?), hv.domid(), dir.path(), &keep)?;
    vbds.set_inflight_dir(keep.clone());
    let config = netback::Config { inflight_dir: Some(keep), ..netback::Config::default() };
    let dir = dir.path().to_owned();
    let vifs =
        netback::Driver::new(hv.clone(), config, move |device, keys| bridges.ours_or_tap(&dir, device, keys));
    serve(&*hv, Unclaimed::new(vbds), Unclaimed::new(vifs), stop)
}

fn serve(
    hv: &dyn Hypervisor,
    mut vbds: impl BackDriver + Send,
    mut vifs: impl BackDriver + Send,
    stop: BorrowedFd<'_>,
) -> Result<()> {
    let store = || Ok::<_, Error>(Client::new(hv.store()?));
    let (vbd_store, vif_store) = (store()?, store()?);
    tracing::info!(domid = %hv.domid(), "serving");
    process::say_ready();
    let ending = Ending::new(hv.domid())?;
    thread::scope(|scope| {
        let ending = &ending;
        let vbd = scope.spawn(move || ending.serve(vbd_store, &mut vbds));
        let vif = scope.spawn(move || ending.serve(vif_store, &mut vifs));
        let waited = ending.wait(stop);
        ending.tell();
        let outcomes =
            [vbd, vif].map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a driver panicked"))));
        outcomes.into_iter().fold(waited, Result::and)
    })
}

/// Tells all threads that it is over: a signal came, or one of them failed.
struct Ending {
    domid: DomId,
    event: EventFd,
}

impl Ending {
    fn new(domid: DomId) -> Result<Ending> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).map_err(|e| Error::io("making an eventfd", e))?;
        Ok(Ending { domid, event })
    }

    /// The descriptor stays readable once told: nobody reads it.
    fn tell(&self) {
        let _ = self.event.write(1);
    }

    fn serve(&self, client: Client, driver: &mut dyn BackDriver) -> Result<()> {
        let outcome = driver::run(client, self.domid, driver, self.event.as_fd());
        self.tell();
        Ok(outcome?)
    }

    fn wait(&self, stop: BorrowedFd<'_>) -> Result<()> {
        process::wait_any(&[stop, self.event.as_fd()])
    }
}
