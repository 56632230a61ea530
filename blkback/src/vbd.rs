//! A virtual block device, as the control loop sees it: disk, handshake, ring.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{DomId, Hypervisor};
use xenstore::driver::{Answer, BackDevice, BackDriver, Failure, Nudge, View};
use xenstore::xenbus::Device;
use xenstore::{Keys, XenbusState};

use crate::device::{End, RingThread, Setup, Tuning};
use crate::engine::{Disk, DiskInfo, OpenError, Spec, open};
use crate::handshake::{Act, Handshake, Ring, Transport, offer};
use crate::stats::Stats;

/// Opens the disk that a back end's keys ask for.
pub type Opener = Box<dyn FnMut(&Device, &Keys) -> Result<Arc<dyn Disk>, Failure> + Send>;

/// The numbers of every device served, by device.
pub type Registry = Arc<Mutex<BTreeMap<(u16, u32), Arc<Stats>>>>;

/// The driver of all `vbd` devices of a domain.
pub struct VbdDriver {
    hv: Arc<dyn Hypervisor>,
    opener: Opener,
    tuning: Tuning,
    registry: Registry,
}

impl VbdDriver {
    /// A driver that opens disks as their keys say ([`Spec`]).
    pub fn new(hv: Arc<dyn Hypervisor>) -> VbdDriver {
        VbdDriver::with_opener(hv, Box::new(|_, keys| open_keys(keys)))
    }

    /// A driver that opens disks its own way.
    pub fn with_opener(hv: Arc<dyn Hypervisor>, opener: Opener) -> VbdDriver {
        VbdDriver { hv, opener, tuning: Tuning::default(), registry: Registry::default() }
    }

    /// How the threads of devices found from now on behave.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// The devices' numbers; those of a device are gone with it. The key is the front end's domain and the device's
    /// number.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }
}

impl BackDriver for VbdDriver {
    fn kind(&self) -> &str {
        "vbd"
    }

    fn probe(&mut self, device: &Device, view: &View, nudge: Nudge) -> Result<Box<dyn BackDevice>, Failure> {
        let disk = (self.opener)(device, &view.own)?;
        let info = disk.info().map_err(|e| failure(&e, format!("params: {}: {e}", disk.name())))?;
        tracing::info!(device = device.back_path(), disk = disk.name(), sectors = info.sectors, "found");
        let stats = Arc::new(Stats::default());
        let id = (device.front, device.id);
        lock(&self.registry).insert(id, stats.clone());
        Ok(Box::new(Vbd {
            device: device.clone(),
            hv: self.hv.clone(),
            tuning: self.tuning,
            handshake: Handshake::new(view),
            ring: None,
            told_to_stop: false,
            told: info,
            disk,
            stats,
            nudge,
            registry: self.registry.clone(),
        }))
    }
}

struct Vbd {
    device: Device,
    hv: Arc<dyn Hypervisor>,
    disk: Arc<dyn Disk>,
    /// What the front end was told of the disk.
    told: DiskInfo,
    handshake: Handshake,
    ring: Option<RingThread>,
    told_to_stop: bool,
    tuning: Tuning,
    stats: Arc<Stats>,
    nudge: Nudge,
    registry: Registry,
}

impl BackDevice for Vbd {
    fn changed(&mut self, view: &View) -> Answer {
        let mut answer = Answer { error: self.reap(), ..Answer::default() };
        self.handshake.see(view);
        loop {
            match self.handshake.next(view, self.ring_state()) {
                Act::Nothing => break,
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
                        self.handshake.failed();
                        answer.error = Some(failure);
                        answer.state = Some(XenbusState::Closing);
                    }
                }
            }
        }
        self.look_at_size(&mut answer);
        answer
    }

    fn stop(&mut self) {
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
            None if self.handshake.state() == XenbusState::Connected => Ring::Ended,
            None => Ring::None,
            Some(_) if self.told_to_stop => Ring::Stopping,
            Some(_) => Ring::Running,
        }
    }

    /// Takes note of a ring whose thread is over; tells why if it was not told to stop.
    fn reap(&mut self) -> Option<Failure> {
        let over = self.ring.take_if(|ring| ring.is_over())?;
        let told = std::mem::take(&mut self.told_to_stop);
        match over.join() {
            Ok(()) => None,
            Err(End::Gone) => {
                tracing::info!(device = self.device.back_path(), "the front end is gone");
                None
            }
            Err(end) if told => {
                tracing::warn!(device = self.device.back_path(), "while it stopped: {end}");
                None
            }
            Err(end) => Some(Failure::new(end.errno(), format!("closing the device: {end}"))),
        }
    }

    fn tell(&mut self, answer: &mut Answer, state: XenbusState) {
        self.refresh();
        answer.keys.extend(offer(&self.told).iter());
        answer.state = Some(state);
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

    /// Tells a connected front end of a new size: `sectors`, then the state once more.
    fn look_at_size(&mut self, answer: &mut Answer) {
        let connected = self.handshake.state() == XenbusState::Connected && answer.state.is_none();
        if let (true, Some(ring)) = (connected && self.refresh(), &self.ring) {
            tracing::info!(device = self.device.back_path(), sectors = self.told.sectors, "resized");
            ring.resized();
            answer.keys.extend(offer(&self.told).iter());
            answer.rewrite = true;
        }
    }

    fn connect(&mut self, transport: Transport) -> Result<(), Failure> {
        let nudge = self.nudge.clone();
        let setup = Setup {
            hv: self.hv.clone(),
            peer: DomId(self.device.front),
            transport,
            disk: self.disk.clone(),
            stats: self.stats.clone(),
            tuning: self.tuning,
            ended: Box::new(move || nudge.nudge()),
        };
        let ring = RingThread::start(setup).map_err(|e| Failure::new(libc::EINVAL, e))?;
        self.ring = Some(ring);
        Ok(())
    }

    fn disconnect(&mut self) {
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
        }
        lock(&self.registry).remove(&(self.device.front, self.device.id));
    }
}

fn open_keys(keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
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
