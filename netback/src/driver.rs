// Not a core: does I/O or calls a hypervisor.

//! The driver for devices of kind `vif`: finds the bridge of each and makes the device.

use crate::Config;
use crate::attachment::Attachment;
use crate::device::VifDevice;
use crate::followed::Followed;
use crate::ports::Ports;
use event_channel::WaitEventChannels;
use grant_table::GrantTable;
use nix::libc;
use std::sync::Arc;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Waker};
use xenbus::{Device, Keys};

/// Finds the bridge of a vif by its keys.
pub type Resolver = Box<dyn FnMut(&Device, &Keys) -> Result<Attachment, Failure> + Send>;

/// Makes vifs.
pub struct VifDriver {
    grants: Arc<dyn GrantTable>,
    channels: Arc<dyn WaitEventChannels>,
    config: Config,
    resolver: Resolver,
    ports: Ports,
}

impl VifDriver {
    /// A driver that attaches each vif to the bridge that `resolver` finds, as a port named [`vif_name`].
    pub fn new(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        config: Config,
        resolver: impl FnMut(&Device, &Keys) -> Result<Attachment, Failure> + Send + 'static,
    ) -> Self {
        Self { grants, channels, config, resolver: Box::new(resolver), ports: Ports::default() }
    }

    /// The ports of its vifs, now and later.
    pub fn ports(&self) -> Ports {
        self.ports.clone()
    }
}

impl BackDriver for VifDriver {
    fn kind(&self) -> &str {
        "vif"
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        &crate::handshake::FRONTEND_KEYS
    }

    fn probe(
        &mut self,
        device: &Device,
        seen: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        let attachment = (self.resolver)(device, &seen.own)?;
        Followed::check(&seen.own, attachment.lock).map_err(|error| Failure::new(libc::EINVAL, error))?;
        let mut vif = VifDevice::new(
            self.grants.clone(),
            self.channels.clone(),
            self.config.clone(),
            device,
            attachment,
            seen,
            waker,
        )
        .listed_in(self.ports.clone());
        vif.resume(seen)?;
        Ok(Box::new(vif))
    }
}
