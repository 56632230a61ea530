//! A virtual block device, as the control loop sees it: disk, handshake, ring.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{DomId, Error, Hypervisor, InflightDir};
use xenstore::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};
use xenstore::xenbus::Device;
use xenstore::{Keys, XenbusState};

use crate::device::{DataPath, End, Recovery, RingThread, Setup, StartError, Tuning, inflight_bytes};
use crate::engine::{Disk, DiskInfo, OpenError, Spec, open};
use crate::handshake::{Act, Handshake, Ring, Transport, offer};
use crate::line::{Lines, Place};
use crate::stats::Stats;

/// Opens the disk that a backend's keys ask for.
pub type Opener = Box<dyn FnMut(&Device, &Keys) -> Result<Arc<dyn Disk>, Failure> + Send>;

/// The numbers of every device served, by device.
pub type Registry = Arc<Mutex<BTreeMap<(DomId, u32), Arc<Stats>>>>;

/// The driver of all `vbd` devices of a domain.
pub struct VbdDriver {
    hv: Arc<dyn Hypervisor>,
    opener: Opener,
    tuning: Tuning,
    keep: Option<InflightDir>,
    lines: Lines,
    registry: Registry,
}

impl VbdDriver {
    /// A driver that opens disks as their keys say ([`Spec`]).
    pub fn new(hv: Arc<dyn Hypervisor>) -> VbdDriver {
        VbdDriver::with_opener(hv, Box::new(|_, keys| open_keys(keys)))
    }

    /// A driver that opens disks its own way. Devices that are given the same disk, the very same value, use it after
    /// each other: the youngest alone.
    pub fn with_opener(hv: Arc<dyn Hypervisor>, opener: Opener) -> VbdDriver {
        let (tuning, keep, lines, registry) =
            (Tuning::default(), None, Lines::default(), Registry::default());
        VbdDriver { hv, opener, tuning, keep, lines, registry }
    }

    /// How the threads of devices found from now on behave.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// Keeps what is in flight on the rings of devices found from now on, so that a successor of this process goes on
    /// with them. For frontends that do not connect again by themselves, and where events reach whoever connects to
    /// a port next, as on Xen.
    pub fn set_inflight_dir(&mut self, keep: InflightDir) {
        self.keep = Some(keep);
    }

    /// The devices' numbers; those of a device are gone with it. The key is the frontend's domain and the device's
    /// number.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }
}

impl BackDriver for VbdDriver {
    fn kind(&self) -> &str {
        "vbd"
    }

    fn probe(
        &mut self,
        device: &Device,
        view: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        let disk = (self.opener)(device, &view.own)?;
        let info = disk.info().map_err(|e| failure(&e, format!("params: {}: {e}", disk.name())))?;
        tracing::info!(device = device.back_path(), disk = disk.name(), sectors = info.sectors, "found");
        let stats = Arc::new(Stats::default());
        let id = (device.front, device.id);
        lock(&self.registry).insert(id, stats.clone());
        let mut vbd = Vbd {
            device: device.clone(),
            hv: self.hv.clone(),
            tuning: self.tuning,
            handshake: Handshake::new(view),
            ring: None,
            told_to_stop: false,
            parked: None,
            place: self.lines.join(&disk, waker.clone()),
            told: info,
            disk,
            stats,
            waker,
            keep: self.keep.clone(),
            registry: self.registry.clone(),
        };
        vbd.resume(view)?;
        Ok(Box::new(vbd))
    }
}

struct Vbd {
    device: Device,
    hv: Arc<dyn Hypervisor>,
    disk: Arc<dyn Disk>,
    /// What the frontend was told of the disk.
    told: DiskInfo,
    handshake: Handshake,
    ring: Option<RingThread>,
    told_to_stop: bool,
    /// The ring that is not served while a younger device uses the disk.
    parked: Option<Transport>,
    place: Arc<Place>,
    tuning: Tuning,
    stats: Arc<Stats>,
    waker: Waker,
    keep: Option<InflightDir>,
    registry: Registry,
}

impl BackDevice for Vbd {
    fn changed(&mut self, view: &DeviceState) -> Update {
        let mut answer = Update { error: self.reap(), ..Update::default() };
        self.take_turns(&mut answer);
        self.handshake.see(view);
        loop {
            match self.handshake.next(view, self.ring_state()) {
                Act::Nothing => break,
                // Nudged when the disk is ours to use.
                Act::Connect(_) if !self.place.take() => break,
                Act::Offer => self.tell(&mut answer, XenbusState::InitWait),
                Act::Connected => self.tell(&mut answer, XenbusState::Connected),
                Act::State(state) => answer.state = Some(state),
                Act::Disconnect => self.disconnect(),
                Act::Refuse(error) => {
                    answer.error = Some(Failure::new(libc::EINVAL, error));
                    answer.state = Some(XenbusState::Closing);
                }
                Act::Connect(transport) => {
                    if let Err(failure) = self.connect(transport) {
                        self.fail(&mut answer, failure);
                    }
                }
            }
        }
        self.look_at_size(&mut answer);
        answer
    }

    fn stop(&mut self) {
        // What is kept is for our successor now.
        self.keep = None;
        if let Some(ring) = self.ring.take() {
            ring.stop();
            if let Err(end) = ring.join() {
                tracing::warn!(device = self.device.back_path(), "{end}");
            }
        }
    }
}

impl Vbd {
    fn ring_state(&self) -> Ring {
        match &self.ring {
            _ if self.parked.is_some() => Ring::Running,
            None if self.handshake.state() == XenbusState::Connected => Ring::Ended,
            None => Ring::None,
            Some(_) if self.told_to_stop => Ring::Stopping,
            Some(_) => Ring::Running,
        }
    }

    /// Lets a younger device have the disk, or has it back from one.
    fn take_turns(&mut self, answer: &mut Update) {
        if let (Some(ring), None, false) = (&self.ring, &self.parked, self.place.has_turn()) {
            tracing::info!(
                device = self.device.back_path(),
                "a younger device of the same machine has the disk now"
            );
            self.parked = Some(ring.transport().clone());
            self.told_to_stop = true;
            ring.stop();
        }
        if self.ring.is_none() && self.parked.is_some() && self.place.take() {
            tracing::info!(device = self.device.back_path(), "has the disk back");
            if let Some(Err(failure)) = self.parked.take().map(|transport| self.connect(transport)) {
                self.fail(answer, failure);
            }
        }
    }

    fn fail(&mut self, answer: &mut Update, failure: Failure) {
        self.handshake.failed();
        answer.error = Some(failure);
        answer.state = Some(XenbusState::Closing);
    }

    /// Takes note of a ring whose thread is over; tells why if it was not told to stop.
    fn reap(&mut self) -> Option<Failure> {
        let over = self.ring.take_if(|ring| ring.is_over())?;
        self.forget();
        let told = std::mem::take(&mut self.told_to_stop);
        match over.join() {
            Ok(()) => None,
            Err(End::Gone) => {
                tracing::info!(device = self.device.back_path(), "the frontend is gone");
                None
            }
            Err(end) if told => {
                tracing::warn!(device = self.device.back_path(), "while it stopped: {end}");
                None
            }
            Err(end) => Some(Failure::new(end.errno(), format!("closing the device: {end}"))),
        }
    }

    fn tell(&mut self, answer: &mut Update, state: XenbusState) {
        self.refresh();
        answer.keys.extend(self.offer().iter());
        answer.state = Some(state);
    }

    fn offer(&self) -> Keys {
        offer(&self.told, self.tuning.data_path == DataPath::Persistent)
    }

    fn refresh(&mut self) -> bool {
        match self.disk.info() {
            Ok(info) => std::mem::replace(&mut self.told, info) != info,
            Err(error) => {
                tracing::warn!(disk = self.disk.name(), %error, "looking at the disk's size");
                false
            }
        }
    }

    /// Tells a connected frontend of a new size: `sectors`, then the state once more.
    fn look_at_size(&mut self, answer: &mut Update) {
        let connected = self.handshake.state() == XenbusState::Connected && answer.state.is_none();
        if let (true, Some(ring)) = (connected && self.refresh(), &self.ring) {
            tracing::info!(device = self.device.back_path(), sectors = self.told.sectors, "resized");
            ring.resized();
            answer.keys.extend(self.offer().iter());
            answer.rewrite = true;
        }
    }

    fn connect(&mut self, transport: Transport) -> Result<(), Failure> {
        let create = |keep: &InflightDir| {
            keep.create(&self.name(), &transport.to_string(), inflight_bytes(&transport))
        };
        let kept = self.keep.as_ref().map(create).transpose().map_err(|e| {
            self.place.leave();
            Failure::new(libc::EIO, e)
        })?;
        let recovery = kept.map_or(Recovery::None, Recovery::Record);
        self.start(transport, recovery).map_err(|e| Failure::new(libc::EINVAL, e))
    }

    /// Serves a ring, having taken the disk.
    fn start(&mut self, transport: Transport, recovery: Recovery) -> Result<(), StartError> {
        let (waker, look, place) = (self.waker.clone(), self.waker.clone(), self.place.clone());
        let setup = Setup {
            hv: self.hv.clone(),
            peer: self.device.front,
            transport,
            disk: self.disk.clone(),
            recovery,
            stats: self.stats.clone(),
            tuning: self.tuning,
            changed: Box::new(move || look.wake()),
            ended: Box::new(move || {
                place.leave();
                waker.wake();
            }),
        };
        self.ring = Some(RingThread::start(setup).inspect_err(|_| self.place.leave())?);
        Ok(())
    }

    /// Goes on with the ring of an earlier process that was connected, if that one kept what was in flight.
    /// Otherwise the handshake starts anew.
    fn resume(&mut self, found: &DeviceState) -> Result<(), Failure> {
        let (Some(keep), XenbusState::Connected) = (&self.keep, found.own_state) else { return Ok(()) };
        let Ok(transport) = Transport::from_keys(&found.other) else { return Ok(()) };
        let kept = match keep.open(&self.name(), &transport.to_string(), inflight_bytes(&transport)) {
            Ok(Some(kept)) => kept,
            Ok(None) => {
                tracing::warn!(
                    device = self.device.back_path(),
                    "nothing was kept of its ring: connecting anew"
                );
                return Ok(());
            }
            Err(error @ Error::Busy(_)) => return Err(Failure::new(libc::EBUSY, error)),
            Err(error) => return Err(Failure::new(libc::EIO, error)),
        };
        if !self.place.take() {
            return Err(Failure::new(libc::EBUSY, "another device of the same machine has the disk"));
        }
        match self.start(transport, Recovery::Resume(kept)) {
            Ok(()) => self.handshake = Handshake::resumed(),
            Err(error) => {
                tracing::warn!(device = self.device.back_path(), %error, "cannot go on with its ring")
            }
        }
        Ok(())
    }

    /// The name by which its requests are kept.
    fn name(&self) -> String {
        format!("vbd-{}-{}", self.device.front, self.device.id)
    }

    /// The ring is over: what was kept of it concerns nobody any more.
    fn forget(&self) {
        if let Some(keep) = &self.keep {
            keep.forget(&self.name());
        }
    }

    fn disconnect(&mut self) {
        self.parked = None;
        match &self.ring {
            Some(ring) => {
                ring.stop();
                self.told_to_stop = true;
            }
            // It ended by itself, and was reaped.
            None => self.handshake.failed(),
        }
    }
}

impl Drop for Vbd {
    /// The ring's thread ends by itself, with all that it maps; nobody waits for a slow disk here.
    fn drop(&mut self) {
        if let Some(ring) = &self.ring {
            ring.stop();
            self.forget();
        }
        lock(&self.registry).remove(&(self.device.front, self.device.id));
    }
}

/// Opens the disk that a backend's keys ask for ([`Spec`]).
///
/// # Errors
/// What the system or [`Spec`] says; EBUSY where another disk has the image.
pub fn open_keys(keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
    let spec = Spec::from_keys(keys).map_err(|e| Failure::new(libc::EINVAL, e))?;
    open(&spec).map_err(|e| match &e {
        OpenError::Io { source, .. } => failure(source, &e),
        OpenError::InUse { .. } => Failure::new(libc::EBUSY, &e),
        OpenError::ReadOnly { .. } => Failure::new(libc::EACCES, &e),
        _ => Failure::new(libc::EINVAL, &e),
    })
}

fn failure(error: &std::io::Error, what: impl ToString) -> Failure {
    Failure::new(error.raw_os_error().unwrap_or(libc::EIO), what)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
