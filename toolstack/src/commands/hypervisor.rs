//! `xpv hypervisor`: broker and store, which outlive dom0 and every guest.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hypervisor::DomId;
use hypervisor::local::{Broker, BrokerConfig, Control, Event};
use xenstore::Client;
use xenstore::server::{Config, Store, StoreHandle};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::{domain, guest, process};

/// Run a machine's broker and store: what Xen and xenstored are on a real host
///
/// Ends with SIGTERM or SIGINT, and with it every process of the machine.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs them until told to end.
///
/// # Errors
/// Another one runs there, or the directory cannot be used.
pub fn run(_args: &Args, dir: &Dir) -> Result<()> {
    let stop = process::stop_signal()?;
    dir.make()?;
    let (dead, died) = channel();
    // The store needs the broker's lock on the directory first: another's socket must not be replaced. The broker
    // needs the store: so it is told of it once there is one.
    let (give, take) = channel::<StoreHandle>();
    let introducer = introducer(take, dead);
    let broker =
        Broker::spawn(BrokerConfig { introducer: Some(introducer), ..BrokerConfig::new(dir.path()) })?;
    let path = dir.store();
    let store = Store::spawn(Config::at(&path)).map_err(|e| Error::file(path, "listening", e))?;
    let client = |e| Error::io("connecting to our own store", e);
    domain::add_dom0(&mut store.client().map_err(client)?)?;
    let _ = give.send(store.handle());
    let undertaker = Undertaker {
        store: store.handle(),
        client: store.client().map_err(client)?,
        control: Control::connect(dir.path())?,
        dir: dir.clone(),
    };
    thread::Builder::new()
        .name("undertaker".into())
        .spawn(move || undertaker.run(&died))
        .map_err(|e| Error::io("starting a thread", e))?;
    tracing::info!(dir = %dir.path().display(), "ready");
    process::say_ready();
    process::wait_any(&[stop.as_fd()])?;
    // Memberships end first: domains see that their machine is gone.
    drop(broker);
    drop(store);
    Ok(())
}

/// Hands domains' connections to the store, and tells of those that died.
fn introducer(
    take: Receiver<StoreHandle>,
    dead: std::sync::mpsc::Sender<DomId>,
) -> Box<dyn FnMut(Event) + Send> {
    let mut store = None;
    Box::new(move |event| {
        let store = match &store {
            Some(store) => store,
            // Only before the store is up does this wait.
            None => match take.recv() {
                Ok(handle) => store.insert(handle),
                Err(_) => return,
            },
        };
        match event {
            Event::Connect { domid: DomId(0), stream } => report(store.connect(stream), 0),
            Event::Connect { domid, stream } => report(store.introduce(domid, stream), domid.0),
            // It fails only while the machine is ending.
            Event::Gone { domid } => drop(dead.send(domid)),
        }
    })
}

fn report(outcome: std::io::Result<()>, domid: u16) {
    if let Err(error) = outcome {
        tracing::warn!(domid, %error, "no connection to the store");
    }
}

/// Removes what a guest leaves when its process has ended: a guest lives as long as its process.
struct Undertaker {
    store: StoreHandle,
    client: Client,
    control: Control,
    dir: Dir,
}

impl Undertaker {
    fn run(mut self, died: &Receiver<DomId>) {
        for domid in died {
            if domid == DomId::DOM0 {
                tracing::warn!("dom0 is gone; its devices wait for the next one");
                continue;
            }
            let all = self.control.list().unwrap_or_default();
            let name = all.iter().find(|d| d.domid == domid).map(|d| d.name.clone());
            let dom0_serves = all.iter().any(|d| d.domid == DomId::DOM0 && d.pid.is_some());
            // ENOENT where it never spoke to the store.
            let _ = self.store.release(domid);
            // What goes wrong here is tried again by whoever creates a guest of that name.
            if let Err(error) = domain::remove(&mut self.client, domid, dom0_serves) {
                tracing::warn!(%domid, %error, "its nodes stay");
            }
            let _ = self.control.destroy(domid);
            if let Some(name) = name {
                tracing::info!(%domid, name, "is gone");
                self.remove_sockets(&name);
            }
        }
    }

    /// Its sockets go, unless another guest has the name already; its log stays, for whoever wonders why.
    fn remove_sockets(&self, name: &str) {
        // Nobody takes the name meanwhile.
        let Ok(_lock) = guest::lock(&self.dir) else { return };
        let taken = self.control.list().is_ok_and(|all| all.iter().any(|d| d.name == name));
        if !taken {
            domain::remove_sockets(&self.dir, name);
        }
    }
}
