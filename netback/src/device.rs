//! The driver for devices of kind `vif`: joins the handshake to the bridge.

use crate::handshake::{Agreed, Handshake, Step, offer};
use crate::vif::{Config, Failed, Vif};
use bridge::Bridge;
use hypervisor::Hypervisor;
use nix::errno::Errno;
use ring_abi::DomId;
use std::sync::{Arc, Mutex, PoisonError};
use xenstore::driver::{Answer, BackDevice, BackDriver, Failure, Nudge, View};
use xenstore::xenbus::Device;
use xenstore::{Keys, XenbusState};

/// Finds the bridge that a vif joins, by what stands in its keys; or tells why there is none.
pub type FindBridge = Box<dyn FnMut(&Device, &Keys) -> Result<Arc<Bridge>, Failure> + Send>;

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
    find: FindBridge,
}

impl Driver {
    /// A driver whose vifs are attached to the bridges that `find` finds, under their [`vif_name`].
    pub fn new(
        hv: Arc<dyn Hypervisor>,
        config: Config,
        find: impl FnMut(&Device, &Keys) -> Result<Arc<Bridge>, Failure> + Send + 'static,
    ) -> Self {
        Self { hv, config, find: Box::new(find) }
    }
}

impl BackDriver for Driver {
    fn kind(&self) -> &str {
        "vif"
    }

    fn probe(&mut self, device: &Device, view: &View, nudge: Nudge) -> Result<Box<dyn BackDevice>, Failure> {
        let bridge = (self.find)(device, &view.own)?;
        let name = vif_name(device, &view.own);
        Ok(Box::new(VifDevice {
            hv: self.hv.clone(),
            config: self.config,
            guest: DomId(device.front),
            bridge,
            name,
            nudge,
            handshake: Handshake::default(),
            end: Arc::default(),
        }))
    }
}

/// How a port ends by itself.
enum End {
    /// The front end let go of its event channels: it closes, or is dead.
    Gone,
    /// It broke the protocol, or something failed here.
    Failed(String),
}

/// One vif, connected or not.
struct VifDevice {
    hv: Arc<dyn Hypervisor>,
    config: Config,
    guest: DomId,
    bridge: Arc<Bridge>,
    name: String,
    nudge: Nudge,
    handshake: Handshake,
    /// How the port ended by itself, told by the bridge's thread.
    end: Arc<Mutex<Option<End>>>,
}

impl VifDevice {
    fn connect(&mut self, view: &View) -> Result<(), Failure> {
        let agreed = Agreed::parse(&view.other, &view.own, self.config.gso)
            .map_err(|error| Failure::new(Errno::EINVAL as i32, error))?;
        // A cell of its own, so that the word of an earlier connection's end is not taken for this one's.
        self.end = Arc::default();
        let (cell, nudge) = (self.end.clone(), self.nudge.clone());
        let tell = Box::new(move |failed: &Failed| {
            let end = match failed {
                Failed::Seam(hypervisor::Error::Closed) => End::Gone,
                other => End::Failed(other.to_string()),
            };
            *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
            nudge.nudge();
        });
        let vif = Vif::connect(&self.hv, self.guest, &agreed, &self.config, tell)
            .map_err(|error| Failure::new(Errno::EIO as i32, error))?;
        self.bridge
            .attach(&self.name, Box::new(vif))
            .map_err(|error| Failure::new(Errno::EIO as i32, error))?;
        tracing::info!(vif = self.name, caps = ?agreed.caps, "connected");
        Ok(())
    }

    fn disconnect(&self) {
        // A port that failed is gone already.
        if self.bridge.detach(&self.name).is_ok() {
            tracing::info!(vif = self.name, "disconnected");
        }
    }

    /// The word of the bridge's thread, if there is one; the port is gone then.
    fn ended(&mut self) -> Option<End> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.disconnect();
        self.handshake.set_connected(false);
        Some(end)
    }

    fn refuse(&mut self, failure: Failure) -> Answer {
        self.handshake.set_connected(false);
        Answer { state: Some(XenbusState::Closing), error: Some(failure), ..Answer::default() }
    }
}

impl BackDevice for VifDevice {
    fn changed(&mut self, view: &View) -> Answer {
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
            Step::Stay => Answer::default(),
            Step::Offer => {
                self.disconnect();
                let state = Some(XenbusState::InitWait);
                Answer { keys: offer(self.config.gso), state, ..Answer::default() }
            }
            Step::Close(state) => {
                self.disconnect();
                Answer { state: Some(state), ..Answer::default() }
            }
            Step::Connect => match if connected { Ok(()) } else { self.connect(view) } {
                Ok(()) => {
                    self.handshake.set_connected(true);
                    Answer { state: Some(XenbusState::Connected), ..Answer::default() }
                }
                Err(failure) => self.refuse(failure),
            },
        }
    }

    fn stop(&mut self) {
        self.disconnect();
        self.handshake.set_connected(false);
    }
}

impl Drop for VifDevice {
    fn drop(&mut self) {
        if self.handshake.is_connected() {
            self.disconnect();
        }
    }
}
