//! The platform in threads: a machine on the local hypervisor with the attacking guest and two honest guests.

use super::Platform;
use bridge::Lock;
use inflight::InflightDir;
use netfront::{Config, Nic};
use ring_abi::DomId;
use tempfile::TempDir;
use testkit::net::{Network, VifSpec, guest, vif};
use testkit::{FrontendDevice, Machine};
use xenbus::XenbusState;

struct Threads {
    attacked: FrontendDevice,
    honest: [Nic; 2],
    // Dropped before the store.
    network: Network,
    machine: Machine,
    _inflight: TempDir,
}

/// A network that maps payloads or, with `response_logs`, one that keeps response logs and therefore copies them.
pub(super) fn platform(response_logs: bool) -> Box<dyn Platform> {
    let directory = tempfile::tempdir().unwrap();
    let inflight_dir = response_logs.then(|| InflightDir::new(directory.path()).unwrap());
    let machine = Machine::new();
    let network = Network::start(&machine, netback::Config { inflight_dir, ..Default::default() });
    // Its attacks are of other kinds: its frames have any address.
    let device = machine.attach_vif_as(DomId(1), 0, &VifSpec { lock: Some(Lock::Off), ..vif() });
    let attacked = FrontendDevice::new(machine.domain(DomId(1)), device);
    let honest = [20, 21].map(|domid| guest(&machine, DomId(domid), Config::default()));
    Box::new(Threads { attacked, honest, network, machine, _inflight: directory })
}

impl Platform for Threads {
    fn attacked(&self) -> FrontendDevice {
        self.attacked.clone()
    }

    fn honest(&mut self) -> &mut [Nic; 2] {
        &mut self.honest
    }

    fn assert_closed(&self, words: &str) {
        self.machine.wait_for_state(&self.attacked.device.back_path(), XenbusState::Closing);
        let text = self.machine.backend_error(&self.attacked.device).unwrap();
        assert!(text.contains(words), "{text:?} does not contain {words:?}");
        assert!(self.network.bridge.ports().unwrap().iter().all(|port| port.name != "vif1.0"));
    }

    fn dropped(&self) -> Option<u64> {
        let ports = self.network.bridge.ports().unwrap();
        let attacked = ports.iter().find(|port| port.name == "vif1.0").unwrap();
        Some(attacked.counters.dropped(bridge::DropReason::NoRoom))
    }
}
