//! Finds a guest's devices as they come and go, and serves each.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use hypervisor::Hypervisor;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use xenstore::{Client, Nodes, XenbusState};

use super::service::{Service, event};
use super::{export, tap};
use crate::dir::{self, Dir};
use crate::error::{Error, Result};

/// The guest that we are.
#[derive(Clone)]
pub struct Guest {
    /// Our hypervisor.
    pub hv: Arc<dyn Hypervisor>,
    /// Our machine.
    pub dir: Dir,
    /// Our name.
    pub name: String,
    /// Where our interfaces are put; where we are when there is none.
    pub netns: Option<Arc<File>>,
}

/// A device's kind and number.
type Id = (&'static str, u32);

/// Serves every device until `stop` becomes readable; then all are closed.
///
/// # Errors
/// The machine is gone.
pub fn run(guest: &Guest, stop: BorrowedFd<'_>) -> Result<()> {
    dir::make(&guest.dir.guest(&guest.name))?;
    let mut client = Client::new(guest.hv.store()?);
    client.watch("device", "device")?;
    let ended = Arc::new(event().map_err(|e| Error::io("making an eventfd", e))?);
    let mut services = BTreeMap::new();
    loop {
        let some_ended = ended.read().is_ok();
        // Before it sleeps: events may have come together with a reply.
        if drain(&mut client)? || some_ended {
            look(guest, &mut client, &ended, &mut services)?;
        } else if wait(&client, &ended, stop)? {
            break;
        }
    }
    // All at once, and only then one after the other.
    services.values().for_each(Service::stop);
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

/// Starts what is new, stops what is gone.
fn look(
    guest: &Guest,
    client: &mut Client,
    ended: &Arc<EventFd>,
    services: &mut BTreeMap<Id, Service>,
) -> Result<()> {
    services.retain(|_, service| !service.is_over());
    let devices = devices(client)?;
    for (id, service) in services.iter() {
        if !devices.contains_key(id) {
            service.stop();
        }
    }
    for (id, state) in devices {
        // One in any other state was served before, and closed.
        if state == XenbusState::Initialising && !services.contains_key(&id) {
            services.insert(id, start(guest, client, ended, id)?);
        }
    }
    Ok(())
}

/// Every device, and its front end's state.
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
        let serve = move |stop: BorrowedFd<'_>| export::run(&theirs.hv, &theirs.dir, &theirs.name, id, stop);
        return Service::start(hv, path, ended, serve);
    }
    let name = tap_name(guest, client, &path, id);
    let serve = move |stop: BorrowedFd<'_>| tap::run(&theirs.hv, &name, id, theirs.netns.as_deref(), stop);
    Service::start(hv, path, ended, serve)
}

/// In a namespace of its own a guest's interface is `eth<n>`; among others' it is called as dom0 calls it.
fn tap_name(guest: &Guest, client: &mut Client, path: &str, id: u32) -> String {
    if guest.netns.is_some() {
        return format!("eth{id}");
    }
    let told = client
        .read_text(&format!("{path}/backend"))
        .and_then(|back| client.read_text(&format!("{back}/vifname")));
    told.unwrap_or_else(|_| format!("vif{}.{id}", guest.hv.domid()))
}
