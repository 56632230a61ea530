//! Watches for a guest's devices, and serves each in a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hypervisor::Hypervisor;
use netfront::Config;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use ring_abi::netif::key::VIFNAME;
use ring_abi::xenbus::key::{BACKEND, STATE};
use tracing::Span;
use xenbus::XenbusState;
use xenbus::error_node::remove_error;
use xenstore::{Client, Nodes};

use super::buffers::CommonBuffers;
use super::failed::Ended;
use super::schedule::{Id, KINDS, Report, Schedule};
use super::service::{Service, event};
use super::tap::NewTap;
use super::{export, kernel, tap};
use crate::error::{Error, Result, chain};
use crate::machine::process;
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
    /// What its disks have in common.
    pub buffers: Arc<CommonBuffers>,
    /// The most queues of a disk.
    pub queues: u32,
}

/// The pause between two attempts to connect to the store again, in milliseconds.
const RECONNECT: u8 = 20;

/// Serves every device until `stop` becomes readable, and then closes them.
///
/// # Errors
/// [`Error::Store`] if the machine is gone.
pub fn run(guest: &Guest, stop: BorrowedFd<'_>) -> Result<()> {
    let client = connect(guest)?;
    let ended = Arc::new(event().map_err(|e| Error::io("creating an eventfd", e))?);
    let schedule = Schedule::new(guest.on_xen);
    let services = BTreeMap::new();
    let known = BTreeSet::new();
    let bound = BTreeSet::new();
    let unreported = Vec::new();
    let mut devices = Devices { guest, client, ended, schedule, services, unreported, known, bound };
    loop {
        // Events may be received together with a reply, after which the descriptor is not readable.
        let has_events = match devices.update().and_then(|()| devices.take_events()) {
            Err(Error::Store(lost)) if lost.is_disconnected() => {
                tracing::warn!(error = %lost, "lost the connection to the store; reconnecting");
                if devices.reconnect(stop)? {
                    break;
                }
                true
            }
            has_events => has_events?,
        };
        if devices.wait(stop, has_events)? {
            break;
        }
    }
    // All are stopped before the first is waited for, which their drop does.
    devices.services.values().for_each(Service::stop);
    Ok(())
}

/// The devices of the guest.
struct Devices<'g> {
    guest: &'g Guest,
    client: Client,
    /// Readable when a service has ended.
    ended: Arc<EventFd>,
    schedule: Schedule,
    services: BTreeMap<Id, Service>,
    /// Services that have ended, each with its error's text if it failed, until the schedule is told.
    unreported: Vec<(Id, Option<String>)>,
    /// The devices that were found last.
    known: BTreeSet<Id>,
    /// Devices that are left to the kernel.
    bound: BTreeSet<Id>,
}

impl Devices<'_> {
    /// Serves new devices, and stops serving those that were removed.
    fn update(&mut self) -> Result<()> {
        let now = Instant::now();
        // Nothing to read; or other services have ended since, which are taken too.
        let _ = self.ended.read();
        self.take_ended();
        // Before the events: what they say is gone was read here at the latest.
        let ids: Vec<Id> = self.unreported.iter().map(|(id, _)| *id).collect();
        let ended: Vec<_> = ids.into_iter().map(|id| self.read_ended(id)).collect();
        // Events that are received with the replies precede what was read.
        let mut found = devices(&mut self.client)?;
        while self.take_events()? {
            found = devices(&mut self.client)?;
        }
        for ((id, failure), ended) in std::mem::take(&mut self.unreported).into_iter().zip(ended) {
            let report = self.schedule.ended(id, failure.as_deref(), now);
            self.report(id, report, ended, &failure.unwrap_or_default());
        }
        let actions = self.schedule.actions(&found, now);
        for service in actions.stop.iter().filter_map(|id| self.services.get(id)) {
            service.stop();
        }
        self.bound.retain(|id| found.contains_key(id));
        // Before anything can fail: the schedule takes them for started.
        actions.start.into_iter().for_each(|id| self.start(id, now));
        for id in std::mem::replace(&mut self.known, found.keys().copied().collect()) {
            if !self.known.contains(&id) {
                remove_error(&mut self.client, &path(self.guest, id))?;
            }
        }
        Ok(())
    }

    /// Connects to the store again, which was killed and has a successor: devices that are connected are served meanwhile.
    /// `true` if `stop` is readable instead.
    fn reconnect(&mut self, stop: BorrowedFd<'_>) -> Result<bool> {
        loop {
            match connect(self.guest) {
                Ok(client) => {
                    tracing::info!("connected to the store again");
                    self.client = client;
                    return Ok(false);
                }
                Err(xenstore::Error::Io(error)) if error.kind() == ErrorKind::ConnectionRefused => {}
                // The new one is lost too.
                Err(error) if error.is_disconnected() && !matches!(error, xenstore::Error::Io(_)) => {}
                Err(error) => return Err(error.into()),
            }
            if process::wait_first(&[stop], RECONNECT.into())? {
                return Ok(true);
            }
        }
    }

    /// Starts a device's service, unless the kernel has the device.
    fn start(&mut self, id: Id, now: Instant) {
        if self.is_bound(id) {
            self.schedule.ended(id, None, now);
            return;
        }
        match start(self.guest, &mut self.client, &self.ended, id) {
            Ok(service) => drop(self.services.insert(id, service)),
            Err(error) => {
                let failure = chain(&error).to_string();
                let report = self.schedule.ended(id, Some(&failure), now);
                let ended = self.read_ended(id);
                self.report(id, report, ended, &failure);
            }
        }
    }

    /// Removes the services that have ended.
    fn take_ended(&mut self) {
        let ids: Vec<Id> = self.services.iter().filter(|(_, s)| s.is_finished()).map(|(id, _)| *id).collect();
        let ended = ids.into_iter().filter_map(|id| Some((id, self.services.remove(&id)?)));
        let ended = ended.map(|(id, service)| (id, service.join().err().map(|e| chain(&e).to_string())));
        self.unreported.extend(ended);
    }

    /// Takes all events; `false` if there was none.
    fn take_events(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            match self.client.poll_event() {
                Ok(None) => return Ok(any),
                Ok(Some(event)) => self.schedule.event(&event.path),
                Err(xenstore::Error::EventsLost(_)) => {}
                Err(e) => return Err(e.into()),
            }
            any = true;
        }
    }

    fn read_ended(&mut self, id: Id) -> xenstore::client::Result<Ended> {
        Ended::read(&mut self.client, &path(self.guest, id))
    }

    /// Reports a service's error in the log and in the store, and closes the frontend.
    fn report(&mut self, id: Id, report: Report, ended: xenstore::client::Result<Ended>, failure: &str) {
        if report == Report::Nothing {
            return;
        }
        let _entered = span(self.guest, id).entered();
        let failure = (report == Report::Error).then_some(failure);
        if let Err(error) = ended.and_then(|ended| ended.close(&mut self.client, failure)) {
            tracing::warn!(failure, %error, "failed to close the frontend");
        }
    }

    /// Whether a device is bound to a driver of the kernel, which serves it then.
    fn is_bound(&mut self, id: Id) -> bool {
        let (kind, number) = id;
        if !self.guest.on_xen {
            return false;
        }
        let Some(driver) = kernel::bound_driver(Path::new(kernel::DEVICES), kind, number) else {
            return false;
        };
        if self.bound.insert(id) {
            let device = format!("{kind}-{number}");
            tracing::warn!(device, driver, "left to the kernel, whose driver is bound to it");
        }
        true
    }

    /// Waits for an event, the end of a service, or the time to start one again; returns at once if `has_events`.
    /// `true` if `stop` is readable.
    fn wait(&self, stop: BorrowedFd<'_>, has_events: bool) -> Result<bool> {
        let mut fds =
            [stop, self.client.fd(), self.ended.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let retry = if has_events { Some(Instant::now()) } else { self.schedule.next_retry() };
        let timeout = retry.map_or(PollTimeout::NONE, |retry| {
            let left = retry.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(e) => Err(Error::io("waiting", e)),
        }
    }
}

/// Connects to the store, and watches the devices.
fn connect(guest: &Guest) -> xenstore::client::Result<Client> {
    let mut client = Client::connect(&guest.hv)?;
    client.watch("device", "device")?;
    Ok(client)
}

/// Reads the devices and the states of their frontends.
fn devices(client: &mut Client) -> Result<BTreeMap<Id, XenbusState>> {
    let mut devices = BTreeMap::new();
    for kind in KINDS {
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

/// The path of a device's frontend.
fn path(guest: &Guest, (kind, number): Id) -> String {
    format!("/local/domain/{}/device/{kind}/{number}", guest.hv.domid())
}

/// The span of a device's log lines.
fn span(guest: &Guest, (kind, devid): Id) -> Span {
    let domid = guest.hv.domid();
    match kind {
        "vbd" => tracing::error_span!("vbd", %domid, devid),
        _ => tracing::error_span!("vif", %domid, devid),
    }
}

fn start(guest: &Guest, client: &mut Client, ended: &Arc<EventFd>, id: Id) -> Result<Service> {
    let (kind, number) = id;
    let span = span(guest, id);
    let ended = ended.clone();
    let guest_of_thread = guest.clone();
    if kind == "vbd" {
        let serve = move |stop: BorrowedFd<'_>| {
            let Guest { hv, directory, buffers, queues, .. } = guest_of_thread;
            export::run(&hv, &directory, number, queues, buffers, stop)
        };
        return Service::start(span, ended, serve);
    }
    let new = new_tap(guest, client, &path(guest, id), number);
    let serve = move |stop: BorrowedFd<'_>| {
        let Guest { hv, netns, offload, .. } = &guest_of_thread;
        tap::run(hv, &new, number, netns.as_deref(), *offload, stop)
    };
    Service::start(span, ended, serve)
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
