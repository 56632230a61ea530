//! Guests with a vif each, and dom0's ends of them, on one machine without a toolstack.

use hypervisor::local::{Domain, Event, Sandbox};
use hypervisor::{DomId, Hypervisor};
use netback::handshake::{Agreed, offer};
use netback::{Config, Vif};
use netfront::Nic;
use std::sync::Arc;
use xenstore::server::{self, Store};
use xenstore::xenbus::{Device, DeviceEnd};
use xenstore::{Client, Keys, Nodes, XenbusState};

/// Broker, store and dom0. Every vif is connected by hand, so that a row may drive its port itself.
pub(super) struct Machine {
    dom0: Arc<Domain>,
    sandbox: Sandbox,
    store: Store,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Machine {
    /// An empty machine.
    ///
    /// # Errors
    /// The system's, in words.
    pub(super) fn new() -> Result<Self, String> {
        let store = Store::spawn(server::Config::default()).map_err(text)?;
        let handle = store.handle();
        let introducer = Box::new(move |event| match event {
            Event::Connect { domid, stream } => {
                // A guest whose connection fails finds out by itself.
                let _ = handle.introduce(domid, stream);
            }
            Event::Gone { domid } => drop(handle.release(domid)),
        });
        let sandbox = Sandbox::with_store(introducer).map_err(text)?;
        let dom0 = sandbox.join(DomId(0)).map_err(text)?;
        Ok(Self { dom0, sandbox, store })
    }

    /// A guest's interface and dom0's end of it, connected.
    ///
    /// # Errors
    /// Whatever went wrong, in words.
    pub(super) fn vif(&self, domid: u16, config: netfront::Config) -> Result<(Nic, Vif), String> {
        let device = Device::new("vif", DomId(domid), 0);
        let mut client = self.store.client().map_err(text)?;
        write_nodes(&mut client, &device).map_err(text)?;
        let guest: Arc<dyn Hypervisor> = self.sandbox.join(DomId(domid)).map_err(text)?;
        let stream = guest.store().map_err(text)?;
        let mut nic = Nic::open(guest, Client::new(stream), 0, config).map_err(text)?;
        let end = DeviceEnd::back(&device);
        let agreed = Agreed::parse(&end.other_keys(&mut client).map_err(text)?, &Keys::new("back"), true)
            .map_err(text)?;
        let dom0: Arc<dyn Hypervisor> = self.dom0.clone();
        let tell = Box::new(|failed: &netback::Failed| eprintln!("a vif failed: {failed}"));
        let vif = Vif::connect(&dom0, DomId(domid), &agreed, &Config::default(), tell).map_err(text)?;
        end.switch_state(&mut client, XenbusState::Connected).map_err(text)?;
        while !nic.is_up() {
            nic.wait(false, std::time::Duration::from_secs(1)).map_err(text)?;
        }
        Ok((nic, vif))
    }
}

fn write_nodes(client: &mut Client, device: &Device) -> Result<(), xenstore::Error> {
    use xenstore::{Permission, client::Access};
    let front = Keys::new(device.front_path())
        .with("backend", device.back_path())
        .with("backend-id", 0)
        .with("mac", format!("02:00:00:00:00:{:02x}", device.front.0))
        .with("state", 1);
    let mut back = offer(true).with("frontend", device.front_path()).with("state", 2);
    back.set("online", 1);
    let perms = |owner, other| [Permission::new(owner, Access::None), Permission::new(other, Access::Read)];
    for (path, keys, perms) in [
        (device.front_path(), &front, perms(device.front, DomId::DOM0)),
        (device.back_path(), &back, perms(DomId::DOM0, device.front)),
    ] {
        client.mkdir(&path)?;
        client.set_perms(&path, &perms)?;
        for (key, value) in keys.iter() {
            client.write(&format!("{path}/{key}"), value)?;
        }
    }
    Ok(())
}
