//! Guests with a vif each, and dom0's ends of them, on one machine without a toolstack.

use grant_table::GrantTable;
use hypervisor::local::Domain;
use netback::handshake::{Negotiated, Offered, backend_keys};
use netback::{Config, Connection};
use netfront::Nic;
use ring_abi::DomId;
use std::sync::Arc;
use xenbus::{DeviceEnd, XenbusState};

const OFFERED: Offered = Offered { gso: true, split: false, flip: true };

/// Broker, store and dom0. Every vif is connected by hand, so that a row may drive its port itself.
pub(super) struct Machine {
    dom0: Arc<Domain>,
    machine: testkit::Machine,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Machine {
    /// An empty machine.
    pub(super) fn new() -> Self {
        let machine = testkit::Machine::without_log();
        let dom0 = machine.domain(DomId::DOM0);
        Self { dom0, machine }
    }

    /// A guest's interface and dom0's end of it, connected.
    ///
    /// # Errors
    /// Whatever went wrong, in words.
    pub(super) fn vif(&self, domid: u16, config: netfront::Config) -> Result<(Nic, Connection), String> {
        let device = self.machine.attach_vif(DomId(domid), 0);
        let mut client = self.machine.client();
        let end = DeviceEnd::back(&device);
        end.publish(&mut client, &backend_keys(OFFERED), XenbusState::InitWait).map_err(text)?;
        let guest = self.machine.domain(DomId(domid));
        let mut nic = Nic::open(guest.clone(), guest.clone(), guest, 0, config).map_err(text)?;
        let negotiated =
            Negotiated::from_keys(&backend_keys(OFFERED), &end.other_keys(&mut client).map_err(text)?)
                .map_err(text)?;
        let grants: Arc<dyn GrantTable> = self.dom0.clone();
        let on_exit = Box::new(|reason| eprintln!("a vif failed: {reason}"));
        let vif =
            Connection::connect(&grants, &*self.dom0, DomId(domid), &negotiated, &Config::default(), on_exit)
                .map_err(text)?;
        end.switch_state(&mut client, XenbusState::Connected).map_err(text)?;
        while !nic.is_up() {
            nic.wait(false, std::time::Duration::from_secs(1)).map_err(text)?;
        }
        Ok((nic, vif))
    }
}
