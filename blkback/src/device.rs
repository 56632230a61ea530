// Not a core: does I/O or calls a hypervisor.

//! One virtual block device over its life: handshake, connection and statistics.

use std::sync::{Arc, Mutex, PoisonError};

use event_channel::WaitEventChannels;
use grant_table::{GrantTable, PageBudget};
use inflight::InflightDir;
use xenbus::driver::{BackDevice, DeviceState, Failure, Update, Waker};
use xenbus::handshake::back::{Follow, Handshake, Reconnect, Ring, fail, follow};
use xenbus::{Device, Keys, XenbusState};

use crate::config::{DataPath, Recovery, RingConfig, Tuning, inflight_bytes};
use crate::connection::Connection;
use crate::disk_queue::Claim;
use crate::engine::{Disk, DiskInfo};
use crate::error::{ExitReason, StartError};
use crate::handshake::{Negotiated, backend_keys};
use crate::stats::Stats;

/// Frontends of disks keep their requests, and close for good when the backend does.
pub(crate) const RECONNECT: Reconnect = Reconnect::InitWait;

/// One vbd, connected or not.
pub(crate) struct VbdDevice {
    pub(crate) device: Device,
    pub(crate) grants: Arc<dyn GrantTable>,
    pub(crate) channels: Arc<dyn WaitEventChannels>,
    pub(crate) disk: Arc<dyn Disk>,
    /// The disk's properties, as advertised to the frontend.
    pub(crate) advertised: DiskInfo,
    /// The properties that a ring's thread has found, and that were not looked at yet.
    pub(crate) found: Arc<Mutex<Option<DiskInfo>>>,
    pub(crate) handshake: Handshake,
    pub(crate) ring: Option<Connection>,
    /// The ring's thread was told to stop.
    pub(crate) stopping: bool,
    /// The ring that is not served while a younger device uses the disk.
    pub(crate) suspended: Option<Negotiated>,
    pub(crate) claim: Arc<Claim>,
    pub(crate) tuning: Tuning,
    pub(crate) stats: Arc<Stats>,
    pub(crate) waker: Waker,
    pub(crate) inflight_dir: Option<InflightDir>,
    pub(crate) page_budget: PageBudget,
}

impl BackDevice for VbdDevice {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        let mut update = Update { error: self.reap(), ..Update::default() };
        self.hand_over(&mut update);
        let was_connected = self.handshake.state() == XenbusState::Connected;
        follow(self, seen, &mut update);
        if !was_connected && self.handshake.state() == XenbusState::Connected {
            tracing::info!("connected");
        }
        self.publish_resize(&mut update);
        update
    }

    fn stats(&self) -> Option<Arc<dyn xenbus::stats::Stats>> {
        Some(self.stats.clone())
    }

    fn stop(&mut self) {
        // The recorded requests are from now on for the successor.
        self.inflight_dir = None;
        if let Some(ring) = self.ring.take() {
            ring.stop();
            if let Err(error) = ring.join() {
                tracing::warn!(%error, "failed while stopping");
            }
        }
    }
}

impl Follow for VbdDevice {
    fn handshake(&mut self) -> &mut Handshake {
        &mut self.handshake
    }

    fn ring(&self) -> Ring {
        match &self.ring {
            _ if self.suspended.is_some() => Ring::Running,
            None => Ring::None,
            Some(_) if self.stopping => Ring::Stopping,
            Some(_) => Ring::Running,
        }
    }

    fn backend_keys(&mut self) -> Keys {
        self.refresh();
        self.advertised_keys()
    }

    fn connect(&mut self, own: &Keys, other: &Keys) -> Result<bool, Failure> {
        let negotiated = Negotiated::from_keys(own, other).map_err(|e| Failure::new(libc::EINVAL, e))?;
        // The device is woken when the disk may be available.
        if !self.claim.try_acquire() {
            return Ok(false);
        }
        self.serve(negotiated).map(|()| true)
    }

    fn disconnect(&mut self) {
        self.suspended = None;
        if let Some(ring) = &self.ring {
            ring.stop();
            self.stopping = true;
        }
    }
}

impl VbdDevice {
    /// Hands the disk over to a younger device, or acquires it again when the younger device has released it.
    fn hand_over(&mut self, update: &mut Update) {
        if let (Some(ring), None, false) = (&self.ring, &self.suspended, self.claim.is_youngest()) {
            tracing::info!("disk handed over to a newer device");
            self.suspended = Some(ring.negotiated().clone());
            self.stopping = true;
            ring.stop();
        }
        if self.ring.is_none() && self.suspended.is_some() && self.claim.try_acquire() {
            tracing::info!("disk acquired");
            if let Some(Err(failure)) = self.suspended.take().map(|negotiated| self.serve(negotiated)) {
                fail(self, update, failure);
            }
        }
    }

    /// Joins a ring's thread that has exited; returns why if it was not told to stop.
    fn reap(&mut self) -> Option<Failure> {
        let ring = self.ring.take_if(|ring| ring.has_exited())?;
        self.remove_inflight();
        let stopped = std::mem::take(&mut self.stopping);
        match ring.join() {
            Ok(()) => {
                tracing::info!("disconnected");
                None
            }
            Err(reason @ ExitReason::PeerGone) => {
                tracing::info!("disconnected: {reason}");
                None
            }
            Err(error) if stopped => {
                tracing::warn!(%error, "failed while stopping");
                None
            }
            Err(error) => Some(Failure::new(error.errno(), format!("closing: {error}"))),
        }
    }

    fn advertised_keys(&self) -> Keys {
        backend_keys(&self.advertised, self.tuning.data_path == DataPath::Persistent)
    }

    /// Takes the properties that a ring's thread has found last; `true` if they are new.
    fn refresh(&mut self) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).take();
        found.is_some_and(|info| std::mem::replace(&mut self.advertised, info) != info)
    }

    /// Publishes a new size to a connected frontend: `sectors`, then the state once more. Whatever has changed may be the size, too:
    /// the ring's thread looks, as that may take long.
    fn publish_resize(&mut self, update: &mut Update) {
        let (XenbusState::Connected, Some(ring)) = (self.handshake.state(), &self.ring) else { return };
        ring.look();
        if update.state.is_none() && self.refresh() {
            tracing::info!(sectors = self.advertised.sectors, "resized");
            if let Some(ring) = &self.ring {
                ring.resized();
            }
            update.keys.extend(self.advertised_keys().iter());
            update.rewrite = true;
        }
    }

    /// Starts to serve a ring, having acquired the disk.
    fn serve(&mut self, negotiated: Negotiated) -> Result<(), Failure> {
        let create = |dir: &InflightDir| {
            dir.create(&self.inflight_name(), &negotiated.to_string(), inflight_bytes(&negotiated))
        };
        let region = self.inflight_dir.as_ref().map(create).transpose().map_err(|e| {
            self.claim.release();
            Failure::new(libc::EIO, e)
        })?;
        let recovery = region.map_or(Recovery::None, Recovery::Record);
        self.start(negotiated, recovery).map_err(|e| {
            self.remove_inflight();
            e.failure()
        })
    }

    /// Starts the ring's thread, having acquired the disk.
    fn start(&mut self, negotiated: Negotiated, recovery: Recovery) -> Result<(), StartError> {
        let info_waker = self.waker.clone();
        let found = self.found.clone();
        let exit_waker = self.waker.clone();
        let claim = self.claim.clone();
        let config = RingConfig {
            grants: self.grants.clone(),
            channels: self.channels.clone(),
            peer: self.device.front,
            negotiated,
            disk: self.disk.clone(),
            info: self.advertised,
            recovery,
            stats: self.stats.clone(),
            tuning: self.tuning,
            page_budget: self.page_budget.clone(),
            on_info: Box::new(move |info| {
                *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(info);
                info_waker.wake();
            }),
            on_exit: Box::new(move || {
                claim.release();
                exit_waker.wake();
            }),
        };
        self.ring = Some(Connection::start(config).inspect_err(|_| self.claim.release())?);
        Ok(())
    }

    /// Resumes the ring of an earlier process that was Connected, if that process recorded its requests in flight.
    /// Otherwise, or where the recorded requests cannot be used, the handshake starts from the beginning.
    pub(crate) fn resume(&mut self, found: &DeviceState) -> Result<(), Failure> {
        let resumed = self.try_resume(found);
        if resumed.is_err() {
            // The recorded requests are for the next attempt.
            self.inflight_dir = None;
        }
        resumed
    }

    fn try_resume(&mut self, found: &DeviceState) -> Result<(), Failure> {
        let (Some(dir), XenbusState::Connected) = (&self.inflight_dir, found.own_state) else {
            return Ok(());
        };
        let Ok(negotiated) = Negotiated::from_keys(&found.own, &found.other) else { return Ok(()) };
        let opened = dir.open(&self.inflight_name(), &negotiated.to_string(), inflight_bytes(&negotiated));
        let region = match opened {
            Ok(Some(region)) => region,
            Ok(None) => {
                tracing::warn!("no in-flight log of its ring; reconnecting");
                return Ok(());
            }
            Err(error @ inflight::Error::Busy(_)) => return Err(Failure::held_by_another_process(error)),
            Err(error) => return Err(Failure::new(libc::EIO, error)),
        };
        if !self.claim.try_acquire() {
            return Err(Failure::in_use_for_now("another device of the same machine uses the disk"));
        }
        match self.start(negotiated, Recovery::Resume(region)) {
            Ok(()) => self.handshake = Handshake::resumed(RECONNECT),
            // An earlier process that is being killed closes its event channels a moment after its files.
            Err(error @ StartError::Channel(event_channel::Error::NoSuchPort { .. }))
                if found.other_state == XenbusState::Connected =>
            {
                return Err(Failure::in_use_for_now(error));
            }
            Err(
                error @ (StartError::Ring(_)
                | StartError::Channel(_)
                | StartError::Memory(_)
                | StartError::Resume(_)),
            ) => {
                tracing::warn!(%error, "failed to resume; reconnecting");
            }
            Err(error) => return Err(Failure::new(error.errno(), error)),
        }
        Ok(())
    }

    /// The name under which requests in flight are recorded.
    fn inflight_name(&self) -> String {
        format!("vbd-{}-{}", self.device.front, self.device.id)
    }

    /// Removes the recorded requests of a ring that is no longer served.
    fn remove_inflight(&self) {
        if let Some(dir) = &self.inflight_dir {
            dir.remove(&self.inflight_name());
        }
    }
}

impl Drop for VbdDevice {
    /// Tells the ring's thread to stop, without waiting for it: the disk may be slow. Removes its record of requests, or an
    /// earlier process's that was not resumed.
    fn drop(&mut self) {
        if let Some(ring) = &self.ring {
            ring.stop();
        }
        self.remove_inflight();
    }
}
