// Not a core: does I/O or calls a hypervisor.

//! One virtual block device over its life: handshake, connection and statistics.

use std::sync::Arc;
use std::time::Instant;

use event_channel::WaitEventChannels;
use grant_table::{GrantTable, PageBudget};
use xenbus::driver::{BackDevice, DeviceState, Failure, Released, Update, Waker};
use xenbus::handshake::back::{Follow, Handshake, Reconnect, Ring, fail, follow};
use xenbus::{Device, Keys, XenbusState};

use crate::config::{Recovery, Tuning};
use crate::connection::{Connection, ConnectionConfig, QueueConfig};
use crate::device_limits::DeviceLimits;
use crate::device_stats::DeviceStats;
use crate::disk_queue::Claim;
use crate::disk_watch::DiskWatch;
use crate::engine::{Disk, DiskInfo};
use crate::error::{ExitReason, StartError};
use crate::handshake::{Negotiated, Offer, disk_keys};
use crate::medium::Media;
use crate::records::Records;

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
    /// The properties that the rings' threads have found.
    pub(crate) watch: Arc<DiskWatch>,
    /// What is offered to the frontend with the disk.
    pub(crate) offer: Offer,
    pub(crate) handshake: Handshake,
    pub(crate) connection: Option<Connection>,
    /// The rings' threads were told to stop.
    pub(crate) stopping: bool,
    /// The rings that are not served while a younger device uses the disk.
    pub(crate) suspended: Option<Negotiated>,
    pub(crate) claim: Arc<Claim>,
    pub(crate) tuning: Tuning,
    pub(crate) stats: Arc<DeviceStats>,
    pub(crate) waker: Waker,
    pub(crate) records: Records,
    pub(crate) page_budget: PageBudget,
    pub(crate) media: Media,
    pub(crate) limits: DeviceLimits,
}

impl BackDevice for VbdDevice {
    fn changed(&mut self, seen: &DeviceState) -> Update {
        let mut update = Update { error: self.reap(), ..Update::default() };
        self.follow_limits(&seen.own);
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

    fn release(self: Box<Self>) -> Option<Released> {
        // What another device uses stays open.
        let closing = self.disk.closing().filter(|_| self.claim.is_alone());
        drop(self);
        closing.map(|closing| -> Released { Box::new(move || closing.is_over()) })
    }

    fn stop(&mut self) {
        // The recorded requests are from now on for the successor.
        self.records.leave();
        if let Some(connection) = self.connection.take() {
            connection.stop();
            if let Err(error) = connection.join() {
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
        match &self.connection {
            _ if self.suspended.is_some() => Ring::Running,
            None => Ring::None,
            Some(_) if self.stopping => Ring::Stopping,
            Some(_) => Ring::Running,
        }
    }

    fn backend_keys(&mut self) -> Keys {
        self.refresh();
        let mut keys = self.offer.keys();
        keys.extend(disk_keys(&self.advertised).iter());
        keys
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
        if let Some(connection) = &self.connection {
            connection.stop();
            self.stopping = true;
        }
    }
}

impl VbdDevice {
    /// Hands the disk over to a younger device, or acquires it again when the younger device has released it.
    fn hand_over(&mut self, update: &mut Update) {
        if let (Some(connection), None, false) = (&self.connection, &self.suspended, self.claim.is_youngest())
        {
            tracing::info!("disk handed over to a newer device");
            self.suspended = Some(connection.negotiated().clone());
            self.stopping = true;
            connection.stop();
        }
        if self.connection.is_none() && self.suspended.is_some() && self.claim.try_acquire() {
            tracing::info!("disk acquired");
            if let Some(Err(failure)) = self.suspended.take().map(|negotiated| self.serve(negotiated)) {
                fail(self, update, failure);
            }
        }
    }

    /// Joins the rings' threads once all have exited; returns why if they were not told to stop. Where one has exited, the
    /// others are told to.
    fn reap(&mut self) -> Option<Failure> {
        self.connection.iter().filter(|connection| connection.is_ending()).for_each(Connection::stop);
        let connection = self.connection.take_if(|connection| connection.has_exited())?;
        self.stats.disconnected();
        self.records.remove();
        let stopped = std::mem::take(&mut self.stopping);
        match connection.join() {
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

    /// Follows the toolstack's keys of the disk's limits, and those of its group's other disks.
    fn follow_limits(&mut self, own: &Keys) {
        if self.limits.follow(own, Instant::now()) {
            let throttle = self.limits.throttle();
            self.stats.set_limits(self.limits.in_force());
            self.connection.iter().for_each(|connection| connection.set_throttle(throttle));
        }
    }

    /// Takes the properties that a ring's thread has found last; `true` if they are new.
    fn refresh(&mut self) -> bool {
        let found = self.watch.take();
        found.is_some_and(|info| std::mem::replace(&mut self.advertised, info) != info)
    }

    /// Publishes a new size to a connected frontend: `sectors`, then the state once more. Whatever has changed may be the size, too:
    /// a ring's thread looks, as that may take long.
    fn publish_resize(&mut self, update: &mut Update) {
        let (XenbusState::Connected, Some(connection)) = (self.handshake.state(), &self.connection) else {
            return;
        };
        connection.look();
        if update.state.is_none() && self.refresh() {
            tracing::info!(sectors = self.advertised.sectors, "resized");
            if let Some(connection) = &self.connection {
                connection.advertised(self.advertised);
            }
            // Not what was offered: the connection, and a successor that resumes it, keep to what an earlier process has offered.
            update.keys.extend(disk_keys(&self.advertised).iter());
            update.rewrite = true;
        }
    }

    /// Starts to serve the rings, having acquired the disk.
    fn serve(&mut self, negotiated: Negotiated) -> Result<(), Failure> {
        let recoveries = self.records.create(&negotiated).map_err(|e| {
            self.claim.release();
            Failure::new(libc::EIO, e)
        })?;
        self.start(negotiated, recoveries).map_err(|e| {
            self.records.remove();
            e.failure()
        })
    }

    /// Starts the rings' threads, having acquired the disk.
    fn start(&mut self, negotiated: Negotiated, recoveries: Vec<Recovery>) -> Result<(), StartError> {
        self.disk.set_detect_zeroes(negotiated.detect_zeroes);
        let waker = self.waker.clone();
        let claim = self.claim.clone();
        let stats = self.stats.of_queues(recoveries.len());
        self.stats.connected(&negotiated, &self.advertised);
        let queues = recoveries.into_iter().zip(stats);
        let queues = queues.map(|(recovery, stats)| QueueConfig { recovery, stats }).collect();
        let config = ConnectionConfig {
            grants: self.grants.clone(),
            channels: self.channels.clone(),
            peer: self.device.front,
            negotiated,
            disk: self.disk.clone(),
            info: self.advertised,
            tuning: self.tuning,
            page_budget: self.page_budget.clone(),
            media: self.media.clone(),
            watch: self.watch.clone(),
            throttle: self.limits.throttle().cloned(),
            on_exit: Arc::new(move || waker.wake()),
        };
        let started = Connection::start(&config, queues, Box::new(move || claim.release()));
        self.connection = Some(started.inspect_err(|_| self.stats.disconnected())?);
        Ok(())
    }

    /// Resumes the rings of an earlier process that was Connected, if that process recorded their requests in flight.
    /// Otherwise, or where the recorded requests cannot be used, the handshake starts from the beginning.
    pub(crate) fn resume(&mut self, found: &DeviceState) -> Result<(), Failure> {
        self.follow_limits(&found.own);
        let resumed = self.try_resume(found);
        if resumed.is_err() {
            // The recorded requests are for the next attempt.
            self.records.leave();
        }
        resumed
    }

    fn try_resume(&mut self, found: &DeviceState) -> Result<(), Failure> {
        // A frontend that is in use has refused to close.
        let is_refused = found.own_state == XenbusState::Closing && !found.online;
        if !self.records.are_kept() || found.own_state != XenbusState::Connected && !is_refused {
            return Ok(());
        }
        let Ok(negotiated) = Negotiated::from_keys(&found.own, &found.other) else { return Ok(()) };
        let recoveries = match self.records.open(&negotiated) {
            Ok(Some(recoveries)) => recoveries,
            Ok(None) => {
                tracing::warn!("no in-flight log of its rings; reconnecting");
                return Ok(());
            }
            Err(error @ inflight::Error::Busy(_)) => return Err(Failure::held_by_another_process(error)),
            Err(error) => return Err(Failure::new(libc::EIO, error)),
        };
        if !self.claim.try_acquire() {
            return Err(Failure::in_use_for_now("another device of the same machine uses the disk"));
        }
        match self.start(negotiated, recoveries) {
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
}

impl Drop for VbdDevice {
    /// Tells the rings' threads to stop, without waiting for them: the disk may be slow. Removes their records of requests, or an
    /// earlier process's that were not resumed.
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.stop();
        }
        self.records.remove();
    }
}
