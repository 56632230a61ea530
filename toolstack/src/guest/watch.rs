//! Finds a guest's devices as they come and go, and serves each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::Hypervisor;
use netfront::Config;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use xenstore::{Client, Nodes, XenbusState};

use super::service::{Service, event};
use super::tap::NewTap;
use super::{export, real, tap};
use crate::error::{Error, Result};
use crate::tap_owner::TapOwner;

/// The guest that we are.
#[derive(Clone)]
pub struct Guest {
    /// Our hypervisor.
    pub hv: Arc<dyn Hypervisor>,
    /// The machine's directory.
    pub machine: PathBuf,
    /// Where our disks' sockets are.
    pub directory: PathBuf,
    /// We are a domain of a real Xen host, where the kernel and earlier processes may have had our devices.
    pub real: bool,
    /// Where our interfaces are put; where we are when there is none.
    pub netns: Option<Arc<File>>,
    /// What our interfaces leave to others.
    pub offload: Config,
}

/// A device's kind and number.
type Id = (&'static str, u32);

/// Serves every device until `stop` becomes readable; then all are closed.
///
/// # Errors
/// The machine is gone.
pub fn run(guest: &Guest, stop: BorrowedFd<'_>) -> Result<()> {
    let mut client = Client::new(guest.hv.store()?);
    client.watch("device", "device")?;
    let ended = Arc::new(event().map_err(|e| Error::io("making an eventfd", e))?);
    let mut devices = Devices::default();
    loop {
        let some_ended = ended.read().is_ok();
        // Before it sleeps: events may have come together with a reply.
        if drain(&mut client)? || some_ended {
            devices.look(guest, &mut client, &ended)?;
        } else if wait(&client, &ended, stop)? {
            break;
        }
    }
    // All at once, and only then one after the other.
    devices.services.values().for_each(Service::stop);
    Ok(())
}

/// Takes all events; `false` when there was none.
fn drain(client: &mut Client) -> Result<bool> {
    let mut any = false;
    loop {
        match client.poll_event() {
            Ok(None) => return Ok(any),
            Ok(Some(_)) | Err(xenstore::Error::EventsLost(_)) => any = true,
            Err(e) => return Err(e.into()),
        }
    }
}

/// `true` when told to stop.
fn wait(client: &Client, ended: &EventFd, stop: BorrowedFd<'_>) -> Result<bool> {
    let mut fds = [stop, client.fd(), ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
        Err(e) => Err(Error::io("waiting", e)),
    }
}

/// The devices that were seen.
#[derive(Default)]
struct Devices {
    services: BTreeMap<Id, Service>,
    /// Those that were served, or are the kernel's.
    known: BTreeSet<Id>,
}

impl Devices {
    /// Starts what is new, stops what is gone.
    fn look(&mut self, guest: &Guest, client: &mut Client, ended: &Arc<EventFd>) -> Result<()> {
        self.services.retain(|_, service| !service.is_over());
        let found = devices(client)?;
        self.known.retain(|id| found.contains_key(id));
        for (id, service) in &self.services {
            if !found.contains_key(id) {
                service.stop();
            }
        }
        for (id, state) in found {
            if !self.services.contains_key(&id) && self.is_new(guest, id, state) {
                self.services.insert(id, start(guest, client, ended, id)?);
            }
        }
        Ok(())
    }

    /// Whether a device is to be served that is not.
    fn is_new(&mut self, guest: &Guest, id: Id, state: XenbusState) -> bool {
        let held = guest.real.then(|| real::driver(Path::new(real::DEVICES), id.0, id.1)).flatten();
        let seen = !self.known.insert(id);
        if let Some(driver) = held {
            if !seen {
                let (kind, number) = id;
                let device = format!("{kind}-{number}");
                tracing::warn!(device, driver, %state, "left to the kernel, whose driver holds it");
            }
            return false;
        }
        // One in any other state was served before and closed: by us, or on a real host by an earlier process.
        state == XenbusState::Initialising || guest.real && !seen
    }
}

/// Every device, and its frontend's state.
fn devices(client: &mut Client) -> Result<BTreeMap<Id, XenbusState>> {
    let mut devices = BTreeMap::new();
    for kind in ["vbd", "vif"] {
        let ids = match client.directory(&format!("device/{kind}")) {
            Err(e) if e.is_not_found() => continue,
            ids => ids?,
        };
        for id in ids.iter().filter_map(|id| id.parse::<u32>().ok()) {
            // A node without a state is being written, or removed: an event follows.
            if let Ok(Some(state)) = client.read_opt_as(&format!("device/{kind}/{id}/state")) {
                devices.insert((kind, id), state);
            }
        }
    }
    Ok(devices)
}

fn start(guest: &Guest, client: &mut Client, ended: &Arc<EventFd>, (kind, id): Id) -> Result<Service> {
    let path = format!("/local/domain/{}/device/{kind}/{id}", guest.hv.domid());
    let (hv, ended) = (&guest.hv, ended.clone());
    let theirs = guest.clone();
    if kind == "vbd" {
        let serve = move |stop: BorrowedFd<'_>| export::run(&theirs.hv, &theirs.directory, id, stop);
        return Service::start(hv, path, ended, serve);
    }
    let new = new_tap(guest, client, &path, id);
    let serve = move |stop: BorrowedFd<'_>| {
        tap::run(&theirs.hv, &new, id, theirs.netns.as_deref(), theirs.offload, stop)
    };
    Service::start(hv, path, ended, serve)
}

/// In a namespace of its own a guest's interface is `eth<n>`, in a kernel of its own `xpv<n>`; among other guests'
/// it is called as dom0 calls it.
fn new_tap(guest: &Guest, client: &mut Client, path: &str, id: u32) -> NewTap {
    let owner = TapOwner::new(&guest.machine, guest.hv.domid(), id);
    let (name, is_chosen) = match (&guest.netns, guest.real) {
        (Some(_), _) => (format!("eth{id}"), false),
        (None, true) => (format!("xpv{id}"), false),
        (None, false) => {
            let told = client
                .read_text(&format!("{path}/backend"))
                .and_then(|back| client.read_text(&format!("{back}/vifname")));
            let name = told.unwrap_or_else(|_| owner.usual_name());
            let is_chosen = name != owner.usual_name();
            (name, is_chosen)
        }
    };
    let other_name = owner.other_name().filter(|_| name == owner.usual_name());
    NewTap { name, is_chosen, other_name, owner, is_told: !guest.real }
}
