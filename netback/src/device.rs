// Not a core: does I/O or calls a hypervisor.

//! One vif over its life: handshake, connection and statistics.

use crate::attachment::{Attachment, vif_name};
use crate::connection::{Connection, OnExit, Recovery, Setup};
use crate::followed::Followed;
use crate::handshake::{self, Negotiated, Offered, backend_keys};
use crate::ports::{Ports, VifPort};
use crate::response_logs::ResponseLogs;
use crate::stats::Stats;
use crate::{Config, ExitReason, StartError};
use bridge::{Counters, Flags, PortSettings, Setting, StormLimits, Vlans};
use event_channel::WaitEventChannels;
use grant_table::GrantTable;
use nix::libc;
use ring_abi::DomId;
use ring_abi::netif::{MTU_MAX, key};
use std::sync::{Arc, Mutex, PoisonError};
use xenbus::driver::{BackDevice, DeviceState, Failure, Update, Waker};
use xenbus::handshake::back::{Follow, Handshake, Reconnect, Ring, follow};
use xenbus::{Device, Keys, XenbusState};

/// Frontends of vifs go from Initialising straight to Connected, and keep nothing.
const RECONNECT: Reconnect = Reconnect::Closing;

/// One vif, connected or not.
pub(crate) struct VifDevice {
    grants: Arc<dyn GrantTable>,
    channels: Arc<dyn WaitEventChannels>,
    config: Config,
    guest: DomId,
    devid: u32,
    /// Where the port is listed.
    ports: Ports,
    attachment: Attachment,
    /// The port's name.
    name: String,
    waker: Waker,
    handshake: Handshake,
    response_logs: Option<ResponseLogs>,
    /// The counters over all connections.
    stats: Arc<Stats>,
    /// What the guest may send and is sent.
    settings: PortSettings,
    rate_keys: Followed<2>,
    rate_in_keys: Followed<2>,
    lock_keys: Followed<2>,
    vlan_key: Followed<1>,
    flag_keys: Followed<{ Flags::NAMES.len() }>,
    storm_keys: Followed<{ StormLimits::NAMES.len() }>,
    /// The bridge has a port of this device, by the name in `name`; another device may have a port of the same name.
    attached: bool,
    /// The connection and the attachment stay for another process.
    stopped: bool,
    /// Set by the bridge's thread when the connection fails.
    exit: Arc<Mutex<Option<ExitReason>>>,
}

impl VifDevice {
    pub(crate) fn new(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        config: Config,
        device: &Device,
        attachment: Attachment,
        seen: &DeviceState,
        waker: Waker,
    ) -> Self {
        let response_logs = config.inflight_dir.clone().map(|dir| ResponseLogs::new(dir, device));
        let lock = attachment.lock;
        let stats = Arc::new(Stats::of_port(&attachment.bridge));
        Self {
            grants,
            channels,
            config,
            guest: device.front,
            devid: device.id,
            ports: Ports::default(),
            attachment,
            name: vif_name(device, &seen.own),
            waker,
            handshake: Handshake::new(RECONNECT, seen),
            response_logs,
            stats,
            settings: PortSettings {
                lock,
                vlans: Vlans::untagged(),
                storm: StormLimits::GUEST,
                ..PortSettings::default()
            },
            rate_keys: Followed::new([key::RATE, key::RATE_PACKETS]),
            rate_in_keys: Followed::new([key::RATE_IN, key::RATE_IN_PACKETS]),
            lock_keys: Followed::new([key::LOCK, key::IP]),
            vlan_key: Followed::new([key::VLAN]),
            flag_keys: Followed::new(Flags::NAMES),
            storm_keys: Followed::new(StormLimits::NAMES),
            attached: false,
            stopped: false,
            exit: Arc::default(),
        }
    }

    /// Has the device's port listed while it has one.
    pub(crate) fn listed_in(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// Resumes the connection of an earlier process from its response logs; the frontend does not notice. Where that
    /// fails, the handshake makes both ends reconnect.
    ///
    /// # Errors
    /// EBUSY, which may pass, while the earlier process still has the event channels or pages.
    pub(crate) fn resume(&mut self, seen: &DeviceState) -> Result<(), Failure> {
        if [seen.own_state, seen.other_state] != [XenbusState::Connected; 2] {
            return Ok(());
        }
        let Some(response_logs) = self.response_logs.take() else { return Ok(()) };
        self.follow_settings(&seen.own);
        let resumed = self.negotiate(&seen.own, &seen.other).and_then(|negotiated| {
            self.start(&negotiated, Recovery::Resume(&response_logs)).map_err(|error| {
                use event_channel::Error::NoSuchPort;
                // An earlier process that is being killed closes its event channels and mappings a moment later.
                match error {
                    StartError::Channel(NoSuchPort { .. }) => Failure::in_use_for_now(error),
                    StartError::Inflight(inflight::Error::Busy(_)) => Failure::held_by_another_process(error),
                    error => Failure::new(error.errno(), error),
                }
            })
        });
        self.response_logs = Some(response_logs);
        match resumed {
            Ok(()) => {
                self.handshake = Handshake::resumed(RECONNECT);
                tracing::info!("resumed");
                Ok(())
            }
            Err(failure) if failure.may_pass => {
                self.stopped = true;
                Err(failure)
            }
            Err(failure) => {
                tracing::warn!(error = failure.what, "failed to resume; reconnecting");
                Ok(())
            }
        }
    }

    fn negotiate(&mut self, own: &Keys, other: &Keys) -> Result<Negotiated, Failure> {
        let followed =
            [self.lock_keys.error(), self.vlan_key.error(), self.flag_keys.error(), self.storm_keys.error()];
        if let Some(error) = followed.into_iter().flatten().next() {
            return Err(Failure::new(libc::EINVAL, error));
        }
        let address = handshake::address(own, self.settings.lock);
        self.settings.address = address.map_err(|error| Failure::new(libc::EINVAL, error))?;
        let mut own = own.clone();
        if !self.attachment.limit_mtu {
            own.set(key::MTU, MTU_MAX);
        }
        Negotiated::from_keys(&own, other).map_err(|error| Failure::new(libc::EINVAL, error))
    }

    fn start(&mut self, negotiated: &Negotiated, recovery: Recovery<'_>) -> Result<(), StartError> {
        let setup = Setup { recovery, stats: self.stats.clone(), on_exit: self.on_exit() };
        let vif =
            Connection::start(&self.grants, &*self.channels, self.guest, negotiated, &self.config, setup)?;
        self.attachment.bridge.attach_with(&self.name, Box::new(vif), self.settings.clone())?;
        self.attached = true;
        let port = VifPort { bridge: self.attachment.bridge.clone(), name: self.name.clone() };
        self.ports.add(self.guest, self.devid, port);
        Ok(())
    }

    /// Follows the toolstack's keys that say what the guest may send and is sent. A value that says nothing changes nothing.
    fn follow_settings(&mut self, own: &Keys) {
        self.follow_rate(own);
        self.follow_rate_in(own);
        self.follow_lock(own);
        self.follow_vlans(own);
        self.follow_flags(own);
        self.follow_storm(own);
    }

    fn follow_rate(&mut self, own: &Keys) {
        if !self.rate_keys.are_new(own) {
            return;
        }
        let in_force = self.settings.rate;
        let Some(rate) = self.rate_keys.take(own, handshake::rate(own), &in_force) else { return };
        if self.attached && rate != in_force {
            let _ = self.attachment.bridge.set(&self.name, Setting::Rate(rate));
            tracing::info!(%rate, "rate limit changed");
        }
        self.settings.rate = rate;
    }

    fn follow_rate_in(&mut self, own: &Keys) {
        if !self.rate_in_keys.are_new(own) {
            return;
        }
        let in_force = self.settings.rate_in;
        let Some(rate_in) = self.rate_in_keys.take(own, handshake::rate_in(own), &in_force) else { return };
        if self.attached && rate_in != in_force {
            let _ = self.attachment.bridge.set(&self.name, Setting::RateIn(rate_in));
            tracing::info!(%rate_in, "receiving rate limit changed");
        }
        self.settings.rate_in = rate_in;
    }

    fn follow_lock(&mut self, own: &Keys) {
        if !self.lock_keys.are_new(own) {
            return;
        }
        let in_force = self.settings.lock;
        let read = handshake::lock(own, self.attachment.lock);
        let Some((lock, allowed)) = self.lock_keys.take(own, read, &in_force) else { return };
        // An attached port has the address that it was attached with, or none.
        if lock.needs_address() && self.attached && self.settings.address.is_none() {
            tracing::warn!(%in_force, "there is no address to lock to; the lock stays as it is");
            return;
        }
        if self.attached {
            let _ = self.attachment.bridge.set(&self.name, Setting::Lock(lock, allowed.clone()));
            tracing::info!(%lock, ip = %allowed, "lock changed");
        }
        self.settings.lock = lock;
        self.settings.allowed = allowed;
    }

    fn follow_vlans(&mut self, own: &Keys) {
        // On a wire the key is for the script that puts the other end into a bridge.
        if self.attachment.bridge.is_wire() || !self.vlan_key.are_new(own) {
            return;
        }
        let Some(vlans) = self.vlan_key.take(own, handshake::vlans(own), &self.settings.vlans) else {
            return;
        };
        if self.attached {
            let _ = self.attachment.bridge.set(&self.name, Setting::Vlans(vlans.clone()));
            tracing::info!(%vlans, "VLANs changed");
        }
        self.settings.vlans = vlans;
    }

    fn follow_flags(&mut self, own: &Keys) {
        if self.attachment.bridge.is_wire() || !self.flag_keys.are_new(own) {
            return;
        }
        let in_force = self.settings.flags;
        let Some(flags) = self.flag_keys.take(own, handshake::flags(own), &in_force) else { return };
        if self.attached {
            let _ = self.attachment.bridge.set(&self.name, Setting::Flags(flags));
            tracing::info!(%flags, "flags changed");
        }
        self.settings.flags = flags;
    }

    fn follow_storm(&mut self, own: &Keys) {
        if self.attachment.bridge.is_wire() || !self.storm_keys.are_new(own) {
            return;
        }
        let in_force = self.settings.storm;
        let Some(limits) = self.storm_keys.take(own, handshake::storm(own, StormLimits::GUEST), &in_force)
        else {
            return;
        };
        if self.attached {
            let _ = self.attachment.bridge.set(&self.name, Setting::Storm(limits));
            tracing::info!(%limits, "storm limits changed");
        }
        self.settings.storm = limits;
    }

    fn on_exit(&mut self) -> OnExit {
        // A new cell for each connection: a late report of an earlier one must not end this one.
        self.exit = Arc::default();
        let exit = self.exit.clone();
        let waker = self.waker.clone();
        Box::new(move |reason| {
            *exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            waker.wake();
        })
    }

    /// Ends the connection, and removes its response logs.
    fn end(&mut self) {
        self.detach();
        self.response_logs.iter().for_each(ResponseLogs::forget);
    }

    fn detach(&mut self) {
        if !std::mem::take(&mut self.attached) {
            return;
        }
        self.ports.remove(self.guest, self.devid);
        // The bridge has detached a port that failed already.
        if self.attachment.bridge.detach(&self.name).is_ok() {
            let counters = self.stats.port.read();
            let Counters { rx_frames, rx_bytes, tx_frames, tx_bytes, .. } = counters;
            let dropped = counters.all_dropped();
            tracing::info!(rx_frames, rx_bytes, tx_frames, tx_bytes, dropped, "disconnected");
        }
    }

    /// Ends a connection that has failed; returns why if that is an error.
    fn reap(&mut self) -> Option<Failure> {
        let reason = self.exit.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.end();
        match reason {
            ExitReason::PeerGone => {
                tracing::info!("disconnected: {reason}");
                None
            }
            reason => Some(Failure::new(reason.errno(), format!("closing: {reason}"))),
        }
    }
}

impl Follow for VifDevice {
    fn handshake(&mut self) -> &mut Handshake {
        &mut self.handshake
    }

    fn ring(&self) -> Ring {
        if self.attached { Ring::Running } else { Ring::None }
    }

    fn backend_keys(&mut self) -> Keys {
        let flip = self.grants.clone().page_donor().is_some();
        backend_keys(Offered { gso: self.config.gso, split: self.config.split_event_channels, flip })
    }

    fn connect(&mut self, own: &Keys, other: &Keys) -> Result<bool, Failure> {
        let negotiated = self.negotiate(own, other)?;
        let response_logs = self.response_logs.take();
        let recovery = response_logs.as_ref().map_or(Recovery::None, Recovery::Record);
        let started = self.start(&negotiated, recovery);
        self.response_logs = response_logs;
        started.map_err(|error| error.failure())?;
        let PortSettings { rate, rate_in, lock, allowed, vlans, flags, .. } = &self.settings;
        tracing::info!(name = self.name, caps = ?negotiated.caps, %rate, %rate_in, %lock, ip = %allowed, %vlans, %flags, "connected");
        Ok(true)
    }

    fn disconnect(&mut self) {
        self.end();
    }
}

impl BackDevice for VifDevice {
    fn stats(&self) -> Option<Arc<dyn xenbus::stats::Stats>> {
        Some(self.stats.clone())
    }

    fn changed(&mut self, seen: &DeviceState) -> Update {
        let closing = matches!(seen.other_state, XenbusState::Closing | XenbusState::Closed);
        // No error is written for a frontend that is closing anyway.
        let error = self.reap().filter(|_| !closing);
        let mut update = Update { error, ..Update::default() };
        self.follow_settings(&seen.own);
        follow(self, seen, &mut update);
        update
    }

    fn stop(&mut self) {
        self.detach();
        self.stopped = true;
    }
}

impl Drop for VifDevice {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        self.end();
        if let Some(cleanup) = self.attachment.cleanup.take() {
            cleanup();
        }
    }
}
