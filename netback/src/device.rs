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
use bridge::{Counters, PortSettings, Setting, StormLimits, Vlans};
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
    /// The keys that say it.
    followed: Vec<Followed>,
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
            followed: Followed::all(),
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
        if let Some(error) = self.followed.iter().find_map(Followed::error) {
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
        let Self { attachment: Attachment { bridge, lock, .. }, settings, followed, attached, name, .. } =
            self;
        for followed in followed.iter_mut().filter(|followed| followed.kind.is_of_wires || !bridge.is_wire())
        {
            let Some(setting) = followed.take(own, *lock, settings) else { continue };
            // An attached port has the address that it was attached with, or none.
            if let Setting::Lock(lock, _) = &setting
                && lock.needs_address()
                && *attached
                && settings.address.is_none()
            {
                let in_force = settings.lock;
                tracing::warn!(%in_force, "there is no address to lock to; the lock stays as it is");
                continue;
            }
            let before = settings.clone();
            settings.change(setting.clone());
            if *attached && *settings != before {
                let _ = bridge.set(name, setting);
                (followed.kind.log)(settings);
            }
        }
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
