//! The attacks' platform in threads: a machine on the local hypervisor, with a guest that attacks and two that do
//! not.

use super::Platform;
use hypervisor::{DomId, InflightDir};
use netfront::{Config, Nic};
use tempfile::TempDir;
use testkit::net::{Network, guest};
use testkit::{FrontendDevice, Machine};
use xenbus::XenbusState;

struct Threads {
    attacked: FrontendDevice,
    honest: [Nic; 2],
    // Ends before the store does.
    network: Network,
    machine: Machine,
    _kept: TempDir,
}

/// A network whose payloads are mapped, or one that keeps response logs and so copies them.
pub(super) fn platform(response_logs: bool) -> Box<dyn Platform> {
    let kept = tempfile::tempdir().unwrap();
    let inflight_dir = response_logs.then(|| InflightDir::new(kept.path()).unwrap());
    let machine = Machine::new();
    let network = Network::start(&machine, netback::Config { inflight_dir, ..Default::default() });
    let device = machine.attach_vif(DomId(1), 0);
    let attacked = FrontendDevice::new(machine.domain(DomId(1)), device);
    let honest = [20, 21].map(|domid| guest(&machine, DomId(domid), Config::default()));
    Box::new(Threads { attacked, honest, network, machine, _kept: kept })
}

impl Platform for Threads {
    fn attacked(&self) -> FrontendDevice {
        self.attacked.clone()
    }

    fn honest(&mut self) -> &mut [Nic; 2] {
        &mut self.honest
    }

    fn is_closed(&self, words: &str) {
        self.machine.wait_for_state(&self.attacked.device.back_path(), XenbusState::Closing);
        let text = self.machine.backend_error(&self.attacked.device).unwrap();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        assert!(self.network.bridge.ports().unwrap().iter().all(|port| port.name != "vif1.0"));
    }

    fn dropped(&self) -> Option<u64> {
        let ports = self.network.bridge.ports().unwrap();
        let stuck = ports.iter().find(|port| port.name == "vif1.0").unwrap();
        Some(stuck.counters.dropped(bridge::Reason::NoRoom))
    }
}
