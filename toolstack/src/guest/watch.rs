//! Watches for a guest's devices, and serves each in a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::Hypervisor;
use netfront::Config;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use ring_abi::netif::key::VIFNAME;
use ring_abi::xenbus::key::{BACKEND, STATE};
use xenbus::XenbusState;
use xenstore::{Client, Nodes};

use super::service::{Service, event};
use super::tap::NewTap;
use super::{export, kernel, tap};
use crate::error::{Error, Result};
use crate::tap_owner::TapOwner;

/// The guest that this process runs, and how.
#[derive(Clone)]
pub struct Guest {
    /// The domain's hypervisor.
    pub hv: Arc<dyn Hypervisor>,
    /// The machine's directory.
    pub machine: PathBuf,
    /// The directory for the disks' sockets.
    pub directory: PathBuf,
    /// Whether this is a domain of a real Xen host, whose kernel or an earlier process may have used the devices.
    pub on_xen: bool,
    /// The network namespace for the taps; this process's own if `None`.
    pub netns: Option<Arc<File>>,
    /// The offloads that the network interfaces negotiate.
    pub offload: Config,
}

/// A device's kind and number.
type Id = (&'static str, u32);

/// Serves every device until `stop` becomes readable, and then closes them.
///
/// # Errors
/// [`Error::Store`] if the machine is gone.
pub fn run(guest: &Guest, stop: BorrowedFd<'_>) -> Result<()> {
    let mut client = Client::connect(&guest.hv)?;
    client.watch("device", "device")?;
    let ended = Arc::new(event().map_err(|e| Error::io("creating an eventfd", e))?);
    let mut devices = Devices::default();
    loop {
        let some_ended = ended.read().is_ok();
        // Events may have been received together with a reply, after which the descriptor is not readable.
        if drain(&mut client)? || some_ended {
            devices.update(guest, &mut client, &ended)?;
        } else if wait(&client, &ended, stop)? {
            break;
        }
    }
    // All are stopped before the first is waited for, which their drop does.
    devices.services.values().for_each(Service::stop);
    Ok(())
}

/// Takes all events; `false` if there was none.
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

/// Waits for an event; `true` if `stop` is readable.
fn wait(client: &Client, ended: &EventFd, stop: BorrowedFd<'_>) -> Result<bool> {
    let mut fds = [stop, client.fd(), ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
        Err(e) => Err(Error::io("waiting", e)),
    }
}

/// The devices of the guest.
#[derive(Default)]
struct Devices {
    services: BTreeMap<Id, Service>,
    /// Devices that were served, or are bound to a driver of the kernel.
    known: BTreeSet<Id>,
}

impl Devices {
    /// Serves new devices, and stops serving those that were removed.
    fn update(&mut self, guest: &Guest, client: &mut Client, ended: &Arc<EventFd>) -> Result<()> {
        self.services.retain(|_, service| !service.is_finished());
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

    /// Whether a device that is not served is to be.
    fn is_new(&mut self, guest: &Guest, id: Id, state: XenbusState) -> bool {
        let bound =
            guest.on_xen.then(|| kernel::bound_driver(Path::new(kernel::DEVICES), id.0, id.1)).flatten();
        let known = !self.known.insert(id);
        if let Some(driver) = bound {
            if !known {
                let (kind, number) = id;
                let device = format!("{kind}-{number}");
                tracing::warn!(device, driver, %state, "left to the kernel, whose driver is bound to it");
            }
            return false;
        }
        // In any other state it was served and closed before: by this process, or on a real host by an earlier one.
        state == XenbusState::Initialising || guest.on_xen && !known
    }
}

/// Reads the devices and the states of their frontends.
fn devices(client: &mut Client) -> Result<BTreeMap<Id, XenbusState>> {
    let mut devices = BTreeMap::new();
    for kind in ["vbd", "vif"] {
        let ids = match client.directory(&format!("device/{kind}")) {
            Err(e) if e.is_not_found() => continue,
            ids => ids?,
        };
        for id in ids.iter().filter_map(|id| id.parse::<u32>().ok()) {
            // A node without a state is being written or removed: an event follows.
            if let Ok(Some(state)) = client.read_opt_as(&format!("device/{kind}/{id}/{STATE}")) {
                devices.insert((kind, id), state);
            }
        }
    }
    Ok(devices)
}

fn start(guest: &Guest, client: &mut Client, ended: &Arc<EventFd>, (kind, id): Id) -> Result<Service> {
    let path = format!("/local/domain/{}/device/{kind}/{id}", guest.hv.domid());
    let hv = &guest.hv;
    let domid = hv.domid();
    let ended = ended.clone();
    let guest_of_thread = guest.clone();
    if kind == "vbd" {
        let span = tracing::error_span!("vbd", %domid, devid = id);
        let serve = move |stop: BorrowedFd<'_>| {
            export::run(&guest_of_thread.hv, &guest_of_thread.directory, id, stop)
        };
        return Service::start(hv, span, path, ended, serve);
    }
    let new = new_tap(guest, client, &path, id);
    let serve = move |stop: BorrowedFd<'_>| {
        let Guest { hv, netns, offload, .. } = &guest_of_thread;
        tap::run(hv, &new, id, netns.as_deref(), *offload, stop)
    };
    Service::start(hv, tracing::error_span!("vif", %domid, devid = id), path, ended, serve)
}

/// Describes a vif's tap: `eth<devid>` in a network namespace, `xpv<devid>` on a real Xen host, else as dom0 names the
/// vif.
fn new_tap(guest: &Guest, client: &mut Client, path: &str, id: u32) -> NewTap {
    let owner = TapOwner::new(&guest.machine, guest.hv.domid(), id);
    let (name, is_chosen) = match (&guest.netns, guest.on_xen) {
        (Some(_), _) => (format!("eth{id}"), false),
        (None, true) => (format!("xpv{id}"), false),
        (None, false) => {
            let vifname = client
                .read_text(&format!("{path}/{BACKEND}"))
                .and_then(|back| client.read_text(&format!("{back}/{VIFNAME}")));
            let name = vifname.unwrap_or_else(|_| owner.usual_name());
            let is_chosen = name != owner.usual_name();
            (name, is_chosen)
        }
    };
    let other_name = owner.other_name().filter(|_| name == owner.usual_name());
    NewTap { name, is_chosen, other_name, owner, is_published: !guest.on_xen }
}
