//! The driver for devices of kind `vif`: joins the handshake to the bridge.

use crate::handshake::{Agreed, Handshake, MTU_MAX, Step, offer};
use crate::response_logs::ResponseLogs;
use crate::vif::{Config, Failed, OnFailure, Recovery, Vif};
use bridge::{Bridge, Counters};
use hypervisor::Hypervisor;
use nix::errno::Errno;
use ring_abi::DomId;
use std::sync::{Arc, Mutex, PoisonError};
use xenstore::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};
use xenstore::xenbus::Device;
use xenstore::{Keys, XenbusState};

/// Finds where a vif goes, by what stands in its keys; or tells why that cannot be.
pub type Resolver = Box<dyn FnMut(&Device, &Keys) -> Result<Attachment, Failure> + Send>;

/// Where a vif goes.
pub struct Attachment {
    /// The bridge it joins.
    pub bridge: Arc<Bridge>,
    /// What bounds the frames that the guest is sent: the key `mtu`; or, where not, an interface of this machine that
    /// stands for the vif, whose mtu is its owner's to change.
    pub bounded: bool,
    /// Done when the device is over in order, and left undone for a successor when the driver stops.
    pub clear: Option<Box<dyn FnOnce() + Send>>,
}

impl Attachment {
    /// A bridge where the vif is one port of many.
    pub fn port_of(bridge: Arc<Bridge>) -> Self {
        Self { bridge, bounded: true, clear: None }
    }
}

/// What a vif's port is called: its key `vifname`, or `vif<domid>.<handle>`.
pub fn vif_name(device: &Device, keys: &Keys) -> String {
    match keys.get("vifname") {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("vif{}.{}", device.front, device.id),
    }
}

/// Makes vifs.
pub struct Driver {
    hv: Arc<dyn Hypervisor>,
    config: Config,
    find: Resolver,
}

impl Driver {
    /// A driver whose vifs are attached to the bridges that `find` finds, under their [`vif_name`].
    pub fn new(
        hv: Arc<dyn Hypervisor>,
        config: Config,
        find: impl FnMut(&Device, &Keys) -> Result<Attachment, Failure> + Send + 'static,
    ) -> Self {
        Self { hv, config, find: Box::new(find) }
    }
}

impl BackDriver for Driver {
    fn kind(&self) -> &str {
        "vif"
    }

    fn probe(
        &mut self,
        device: &Device,
        view: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        let place = (self.find)(device, &view.own)?;
        let name = vif_name(device, &view.own);
        let response_logs = self.config.keep.clone().map(|keep| ResponseLogs::new(keep, device));
        let mut vif = VifDevice {
            hv: self.hv.clone(),
            config: self.config.clone(),
            guest: device.front,
            place,
            name,
            waker,
            handshake: Handshake::default(),
            response_logs,
            stopped: false,
            end: Arc::default(),
        };
        vif.resume(view)?;
        Ok(Box::new(vif))
    }
}

/// How a port ends by itself.
enum End {
    /// The frontend let go of its event channels: it closes, or is dead.
    Gone,
    /// It broke the protocol, or something failed here.
    Failed(String),
}

/// One vif, connected or not.
struct VifDevice {
    hv: Arc<dyn Hypervisor>,
    config: Config,
    guest: DomId,
    place: Attachment,
    name: String,
    waker: Waker,
    handshake: Handshake,
    response_logs: Option<ResponseLogs>,
    /// What stands here is left to a successor.
    stopped: bool,
    /// How the port ended by itself, told by the bridge's thread.
    end: Arc<Mutex<Option<End>>>,
}

impl VifDevice {
    fn agree(&self, view: &DeviceState) -> Result<Agreed, Failure> {
        let mut own = view.own.clone();
        if !self.place.bounded {
            own.set("mtu", MTU_MAX);
        }
        Agreed::parse(&view.other, &own, self.config.gso)
            .map_err(|error| Failure::new(Errno::EINVAL as i32, error))
    }

    /// What an earlier process has left in the midst of its service goes on here; the frontend does not notice. Where
    /// that cannot be, both ends begin anew.
    fn resume(&mut self, view: &DeviceState) -> Result<(), Failure> {
        if [view.own_state, view.other_state] != [XenbusState::Connected; 2] {
            return Ok(());
        }
        let Some(response_logs) = self.response_logs.take() else { return Ok(()) };
        let resumed = self.agree(view).and_then(|agreed| {
            self.start(&agreed, Recovery::Resume(&response_logs)).map_err(|failed| {
                use hypervisor::Error::{Busy, NoSuchPort};
                let busy = matches!(failed, Failed::Hypervisor(Busy(_) | NoSuchPort { .. }));
                // The earlier process lets go of these when it is gone, and that may be a moment from now.
                Failure::new(if busy { Errno::EBUSY } else { Errno::EIO } as i32, failed)
            })
        });
        self.response_logs = Some(response_logs);
        match resumed {
            Ok(()) => {
                self.handshake.set_connected(true);
                tracing::info!(vif = self.name, "goes on where an earlier process was killed or stopped");
                Ok(())
            }
            Err(failure) if failure.errno == Errno::EBUSY as i32 => {
                self.stopped = true;
                Err(failure)
            }
            Err(failure) => {
                tracing::warn!(vif = self.name, "cannot go on, and begins anew: {}", failure.what);
                Ok(())
            }
        }
    }

    fn connect(&mut self, view: &DeviceState) -> Result<(), Failure> {
        let agreed = self.agree(view)?;
        let response_logs = self.response_logs.take();
        let begin = response_logs.as_ref().map_or(Recovery::None, Recovery::Record);
        let started = self.start(&agreed, begin);
        self.response_logs = response_logs;
        started.map_err(|error| Failure::new(Errno::EIO as i32, error))?;
        tracing::info!(vif = self.name, caps = ?agreed.caps, "connected");
        Ok(())
    }

    fn start(&mut self, agreed: &Agreed, begin: Recovery<'_>) -> Result<(), Failed> {
        let tell = self.on_failure();
        let vif = Vif::begin(&self.hv, self.guest, agreed, &self.config, begin, tell)?;
        self.place.bridge.attach(&self.name, Box::new(vif)).map_err(|e| Failed::Io(std::io::Error::other(e)))
    }

    fn on_failure(&mut self) -> OnFailure {
        // A cell of its own, so that the word of an earlier connection's end is not taken for this one's.
        self.end = Arc::default();
        let (cell, waker) = (self.end.clone(), self.waker.clone());
        Box::new(move |failed: &Failed| {
            let end = match failed {
                Failed::Hypervisor(hypervisor::Error::Closed) => End::Gone,
                other => End::Failed(other.to_string()),
            };
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
            waker.wake();
        })
    }

    /// Ends the connection for good.
    fn disconnect(&self) {
        self.detach();
        self.response_logs.iter().for_each(ResponseLogs::forget);
    }

    fn detach(&self) {
        // A port that failed is gone already.
        if let Ok(port) = self.place.bridge.detach(&self.name) {
            let counters = port.stats().read();
            let Counters { rx_frames, rx_bytes, tx_frames, tx_bytes, .. } = counters;
            tracing::info!(
                vif = self.name,
                rx_frames,
                rx_bytes,
                tx_frames,
                tx_bytes,
                dropped = counters.all_dropped(),
                "disconnected"
            );
        }
    }

    /// The word of the bridge's thread, if there is one; the port is gone then.
    fn ended(&mut self) -> Option<End> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.disconnect();
        self.handshake.set_connected(false);
        Some(end)
    }

    fn refuse(&mut self, failure: Failure) -> Update {
        self.handshake.set_connected(false);
        Update { state: Some(XenbusState::Closing), error: Some(failure), ..Update::default() }
    }
}

impl BackDevice for VifDevice {
    fn changed(&mut self, view: &DeviceState) -> Update {
        let closing = matches!(view.other_state, XenbusState::Closing | XenbusState::Closed);
        match self.ended() {
            // One that is closing anyway need not be told.
            Some(End::Failed(what)) if !closing => {
                return self.refuse(Failure::new(Errno::EPROTO as i32, what));
            }
            _ => {}
        }
        let connected = self.handshake.is_connected();
        match self.handshake.step(view.own_state, view.other_state, view.online) {
            Step::Stay => Update::default(),
            Step::Offer => {
                self.disconnect();
                let state = Some(XenbusState::InitWait);
                Update { keys: offer(self.config.gso), state, ..Update::default() }
            }
            Step::Close(state) => {
                self.disconnect();
                Update { state: Some(state), ..Update::default() }
            }
            Step::Connect => match if connected { Ok(()) } else { self.connect(view) } {
                Ok(()) => {
                    self.handshake.set_connected(true);
                    Update { state: Some(XenbusState::Connected), ..Update::default() }
                }
                Err(failure) => self.refuse(failure),
            },
        }
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
        if self.handshake.is_connected() {
            self.disconnect();
        }
        if let Some(clear) = self.place.clear.take() {
            clear();
        }
    }
}
