//! `xpv dom0`: the back ends, and the bridges between guests and the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use ::bridge::port::{netdev, packet::Packet, tap::Tap};
use ::bridge::{Bridge, Config, Port};
use hypervisor::local::Domain;
use hypervisor::{DomId, Hypervisor};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xenstore::Client;
use xenstore::driver::{self, BackDriver};

use crate::config::host::{BridgeConfig, HostPort};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::{Machine, process};

/// Serve disks and network interfaces as domain 0
///
/// Takes over all devices that there are: one that was killed can be started again, and guests go on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A bridge, and ports of it towards the host: xenbr0, or xenbr0=tap:host0,packet:eth1
    #[arg(long = "bridge", value_name = "NAME[=PORT,...]", default_value = "xenbr0")]
    bridges: Vec<BridgeConfig>,

    /// No bridge at all
    #[arg(long, conflicts_with = "bridges")]
    no_bridge: bool,
}

/// Serves until told to end, or the machine is gone.
///
/// # Errors
/// A bridge's port cannot be had, another process is domain 0, or the machine is gone.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let stop = process::stop_signal()?;
    // Before anything is joined: what cannot be had must leave nothing behind.
    let bridges = if args.no_bridge { BTreeMap::new() } else { bridges(&args.bridges)? };
    let domain: Arc<dyn Hypervisor> = Arc::new(Domain::join(dir.path(), DomId::DOM0)?);
    let store = || Ok::<_, Error>(Client::new(domain.store()?));
    let mut own = store()?;
    Machine::publish_bridges(&mut own, bridges.keys().map(String::as_str))?;
    let mut vbds = blkback::VbdDriver::new(domain.clone());
    let mut vifs = netback::Driver::new(domain.clone(), netback::Config::default(), move |name| {
        bridges.get(name.unwrap_or(crate::config::vif::DEFAULT_BRIDGE)).cloned()
    });
    let (vbd_store, vif_store) = (store()?, store()?);
    tracing::info!("dom0 serves");
    process::say_ready();
    let ending = Ending::new()?;
    thread::scope(|scope| {
        let ending = &ending;
        let vbd = scope.spawn(move || ending.serve(vbd_store, &mut vbds));
        let vif = scope.spawn(move || ending.serve(vif_store, &mut vifs));
        let waited = ending.wait(stop.as_fd());
        ending.tell();
        let outcomes =
            [vbd, vif].map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a driver panicked"))));
        outcomes.into_iter().fold(waited, Result::and)
    })
}

/// Tells all threads that it is over: a signal came, or one of them failed.
struct Ending(EventFd);

impl Ending {
    fn new() -> Result<Ending> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_flags(flags).map(Ending).map_err(|e| Error::io("making an eventfd", e))
    }

    /// The descriptor stays readable once told: nobody reads it.
    fn tell(&self) {
        let _ = self.0.write(1);
    }

    fn serve(&self, client: Client, driver: &mut dyn BackDriver) -> Result<()> {
        let outcome = driver::run(client, DomId::DOM0.0, driver, self.0.as_fd());
        self.tell();
        Ok(outcome?)
    }

    fn wait(&self, stop: BorrowedFd<'_>) -> Result<()> {
        process::wait_any(&[stop, self.0.as_fd()])
    }
}

fn bridges(configs: &[BridgeConfig]) -> Result<BTreeMap<String, Arc<Bridge>>> {
    let mut bridges = BTreeMap::new();
    for config in configs {
        let failed = |e: &dyn std::fmt::Display| Error::Other(format!("bridge {}: {e}", config.name));
        let bridge = Bridge::start(Config { name: config.name.clone(), ..Config::default() })
            .map_err(|e| failed(&e))?;
        for port in &config.ports {
            let opened = open(port).map_err(|e| failed(&e))?;
            bridge.attach(&port.to_string(), opened).map_err(|e| failed(&e))?;
        }
        if bridges.insert(config.name.clone(), Arc::new(bridge)).is_some() {
            return Err(failed(&"it is named twice"));
        }
    }
    Ok(bridges)
}

fn open(port: &HostPort) -> Result<Box<dyn Port>, netdev::NetError> {
    match port {
        HostPort::Tap(name) => {
            let tap = Tap::open(name)?;
            netdev::set_up(tap.name())?;
            Ok(Box::new(tap))
        }
        HostPort::Packet(name) => {
            netdev::set_up(name)?;
            Ok(Box::new(Packet::open(name)?))
        }
    }
}
