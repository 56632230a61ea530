//! `xpv hypervisor`: broker and store, which keep running when dom0 or a guest exits.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use event_loop::Essential;
use hypervisor::local::{Broker, BrokerConfig, Control, DomainEvent, DomainEvents, MayTakeOver};
use ring_abi::DomId;
use xenstore::server::{Config, Image, Store, StoreHandle};
use xenstore::{Client, Nodes};

use crate::dir::Dir;
use crate::error::{Error, Result, chain};
use crate::machine::domain::{self, Removal};
use crate::machine::{guest, process};
use crate::sandbox::{self, Role};

/// Run a machine's broker and store: what Xen and xenstored are on a real host
///
/// Exits on SIGTERM or SIGINT, and with it every process of the machine. If it is killed instead, they wait for a minute for
/// another one to be started in the same directory, which goes on from there; `xpv up` starts it.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs broker and store until a signal.
///
/// `sandbox`: what the process does not need is given up first.
///
/// # Errors
/// Another machine runs in the directory, or it cannot be used.
pub fn run(_args: &Args, dir: &Dir, sandbox: bool) -> Result<()> {
    let stop = process::stop_signal()?;
    dir.make()?;
    let sandbox = sandbox::enter(Role::Hypervisor, dir.path(), sandbox)?;
    let (gone_sender, gone) = channel();
    // The broker starts first, as it locks the directory: the socket of another machine's store must not be replaced.
    // It receives the store's handle once the store runs.
    let (store_sender, store_receiver) = channel::<StoreHandle>();
    let domain_events = domain_events(store_receiver, gone_sender);
    let (succession, predecessor) = succession(dir);
    let broker = Broker::spawn(BrokerConfig {
        domain_events: Some(domain_events),
        succession: Some(succession),
        ..BrokerConfig::new(dir.path())
    })?;
    let path = dir.store();
    let predecessor = predecessor.take();
    let config = Config { state: Some(dir.store_state()), predecessor, ..Config::at(&path) };
    let store = Store::spawn(config).map_err(|e| Error::file(path, "listening", e))?;
    let client = |e| Error::io("connecting to the store", e);
    if !broker.has_taken_over() {
        domain::add_dom0(&mut store.client().map_err(client)?)?;
    }
    let _ = store_sender.send(store.handle());
    let has_taken_over = broker.has_taken_over();
    let reaper = DomainReaper {
        store: store.handle(),
        client: store.client().map_err(client)?,
        control: Control::connect(dir.path())?,
        dir: dir.clone(),
    };
    thread::Builder::new()
        .name("reaper".into())
        .spawn(move || {
            let _essential = Essential;
            reaper.run(&gone, has_taken_over)
        })
        .map_err(|e| Error::io("starting a thread", e))?;
    tracing::info!(dir = %dir.path().display(), %sandbox, "ready");
    process::report_ready();
    process::wait_any(&[stop.as_fd()])?;
    // The broker stops first: domains then see that their machine is gone.
    drop(broker);
    drop(store);
    Ok(())
}

/// Returns what the broker asks before it takes over from one that was killed: whether the store's part is there too, which is left
/// in the second value.
fn succession(dir: &Dir) -> (MayTakeOver, Rc<Cell<Option<Image>>>) {
    let path = dir.store_state();
    let predecessor = Rc::new(Cell::new(None));
    let found = predecessor.clone();
    let read = move || {
        let image = Image::read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "the store of a hypervisor that was killed is lost");
            None
        });
        let is_found = image.is_some();
        found.set(image);
        is_found
    };
    (Box::new(read), predecessor)
}

/// Returns the broker's callback, which passes domains' connections to the store and the ids of dead domains to `gone`.
fn domain_events(
    store_receiver: Receiver<StoreHandle>,
    gone: std::sync::mpsc::Sender<DomId>,
) -> DomainEvents {
    let mut store = None;
    Box::new(move |event| {
        let store = match &store {
            Some(store) => store,
            // Blocks only until the store is up.
            None => match store_receiver.recv() {
                Ok(handle) => store.insert(handle),
                Err(_) => return,
            },
        };
        match event {
            DomainEvent::Connect { domid: DomId(0), stream, .. } => log_failure(store.connect(stream), 0),
            DomainEvent::Connect { domid, stream, lease } => {
                log_failure(store.introduce_with(domid, stream, Box::new(lease)), domid.0);
            }
            // Fails only while the machine is shutting down.
            DomainEvent::Exited { domid } => drop(gone.send(domid)),
        }
    })
}

fn log_failure(outcome: std::io::Result<()>, domid: u16) {
    if let Err(error) = outcome {
        tracing::warn!(domid, %error, "failed to connect the domain to the store");
    }
}

/// Removes the domain, nodes and sockets of guests whose process exited.
struct DomainReaper {
    store: StoreHandle,
    client: Client,
    control: Control,
    dir: Dir,
}

impl DomainReaper {
    /// Several guests are removed at the same time: a backend that does not close one's devices delays no other.
    fn run(mut self, gone: &Receiver<DomId>, has_taken_over: bool) {
        let mut removals = Vec::new();
        if has_taken_over {
            let left = self.without_domain();
            removals.extend(left.into_iter().filter_map(|domid| self.start(domid)));
        }
        loop {
            let received = match removals.is_empty() {
                true => gone.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => gone.recv_timeout(domain::POLL_INTERVAL),
            };
            match received {
                Ok(DomId::DOM0) => tracing::warn!("dom0 exited; its devices wait for the next dom0"),
                Ok(domid) => removals.extend(self.start(domid)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let client = &mut self.client;
            // An error is one of the store, which `finish` reports.
            let due: Vec<_> =
                removals.extract_if(.., |removal| removal.is_due(client).unwrap_or(true)).collect();
            due.into_iter().for_each(|removal| self.finish(removal));
        }
    }

    /// Domains that have nodes in the store, and are none of the broker's: whoever destroyed one was interrupted by the end of
    /// the hypervisor before this one.
    fn without_domain(&mut self) -> Vec<DomId> {
        // Before the broker's are listed: a new domain gets its nodes last.
        let homes = self.client.directory("/local/domain").unwrap_or_default();
        let Ok(domains) = self.control.list() else { return Vec::new() };
        let is_left = |domid: &DomId| domains.iter().all(|domain| domain.domid != *domid);
        homes.iter().filter_map(|home| home.parse().ok()).map(DomId).filter(is_left).collect()
    }

    /// Starts to remove a guest.
    fn start(&mut self, domid: DomId) -> Option<Removal> {
        let domains = self.control.list().unwrap_or_default();
        let dom0_runs = domains.iter().any(|d| d.domid == DomId::DOM0 && d.pid.is_some());
        // ENOENT if the domain never connected to the store.
        let _ = self.store.release(domid);
        match Removal::start(&mut self.client, domid, dom0_runs.then_some(domain::REAP_TIMEOUT)) {
            Ok(removal) => Some(removal),
            Err(error) => {
                tracing::warn!(%domid, error = %chain(&error), "failed to close the domain's devices");
                self.destroy(domid);
                None
            }
        }
    }

    fn finish(&mut self, removal: Removal) {
        let domid = removal.domid();
        // Creating a guest of the same name tries again what fails here.
        if let Err(error) = removal.finish(&mut self.client) {
            tracing::warn!(%domid, error = %chain(&error), "failed to remove the domain's nodes");
        }
        self.destroy(domid);
    }

    fn destroy(&mut self, domid: DomId) {
        let domains = self.control.list().unwrap_or_default();
        let name = domains.into_iter().find(|d| d.domid == domid).map(|d| d.name);
        let _ = self.control.destroy(domid);
        if let Some(name) = name {
            tracing::info!(%domid, name, "guest exited");
            self.remove_sockets(&name);
        }
    }

    /// Removes the guest's sockets, unless another guest has the name already; its log is kept for diagnosis.
    fn remove_sockets(&self, name: &str) {
        // While it is held, no guest of this name is created.
        let Ok(_lock) = guest::lock(&self.dir) else { return };
        let taken = self.control.list().is_ok_and(|domains| domains.iter().any(|d| d.name == name));
        if !taken {
            domain::remove_sockets(&self.dir, name);
        }
    }
}
