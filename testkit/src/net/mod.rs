//! Interfaces: a bridge and its backend in threads, frontends, and ends whose rings the test drives.

mod raw_backend;
mod raw_frontend;
mod reader;

pub use raw_backend::RawBackend;
pub use raw_frontend::RawFrontend;
pub use reader::Reader;
pub use toolstack::config::VifSpec;

use crate::{BOUND, DriverThread, Machine};
use bridge::port::pair::Pair;
use bridge::{Bridge, Frame, Frames, Port};
use hypervisor::local::Domain;
use inflight::InflightDir;
use netback::{Attachment, VifDriver};
use netfront::Nic;
use ring_abi::DomId;
use ring_abi::netif::{MTU_DEFAULT, Mac};
use std::sync::Arc;
use std::time::{Duration, Instant};
use toolstack::config::vif::DEFAULT_BRIDGE;
use toolstack::machine::vif;
use xenbus::Device;
use xenbus::driver::Registry;
use xenstore::Client;

/// Describes an interface with every default.
pub fn vif() -> VifSpec {
    VifSpec {
        mac: None,
        bridge: DEFAULT_BRIDGE.to_owned(),
        vifname: None,
        rate: None,
        rate_packets: None,
        rate_in: None,
        rate_in_packets: None,
        lock: None,
        ip: Default::default(),
        vlan: None,
        flags: Vec::new(),
        storm: Vec::new(),
        mtu: MTU_DEFAULT,
        devid: None,
        trusted: true,
    }
}

impl Machine {
    /// Attaches an interface as libxl does by default, with the address 00:16:3e:00:`domid`:`devid`.
    pub fn attach_vif(&self, domid: DomId, devid: u32) -> Device {
        self.attach_vif_as(domid, devid, &vif())
    }

    /// Attaches an interface, with the nodes that libxl writes.
    pub fn attach_vif_as(&self, domid: DomId, devid: u32, spec: &VifSpec) -> Device {
        let mac = Mac::xen([0, domid.0 as u8, devid as u8]);
        self.attach(vif::nodes(domid, spec, devid, spec.mac.unwrap_or(mac)))
    }

    /// Attaches an interface to a domain with one of the backend's keys as no toolstack of ours writes it.
    pub fn attach_vif_with(
        &self,
        domid: DomId,
        devid: u32,
        spec: &VifSpec,
        key: &str,
        value: &str,
    ) -> Device {
        let mut new = vif::nodes(domid, spec, devid, Mac::xen([0, domid.0 as u8, devid as u8]));
        new.back.set(key, value);
        self.attach(new)
    }
}

/// A bridge and the backend of its ports, in dom0's threads. The backend is dropped before the bridge.
pub struct Network {
    backend: Option<DriverThread>,
    /// The bridge that every interface is attached to.
    pub bridge: Arc<Bridge>,
    /// The backend's domain.
    pub dom0: Arc<Domain>,
    /// The interfaces that the running backend serves.
    pub registry: Registry,
}

impl Network {
    /// Joins as dom0, and starts a bridge and a backend.
    pub fn start(machine: &Machine, config: netback::Config) -> Network {
        Network::start_on(machine, config, bridge::Config::default())
    }

    /// Joins as dom0, and starts a wire, whose one end is an interface, and a backend.
    pub fn wire(machine: &Machine, config: netback::Config) -> Network {
        Network::start_on(machine, config, bridge::Config::wire("wire"))
    }

    fn start_on(machine: &Machine, config: netback::Config, bridge: bridge::Config) -> Network {
        let dom0 = machine.domain(DomId::DOM0);
        let bridge = Arc::new(Bridge::start(bridge).unwrap());
        let mut network = Network { backend: None, bridge, dom0, registry: Registry::default() };
        network.restart_backend(config);
        network
    }

    /// Stops the running backend, if any, and starts another.
    pub fn restart_backend(&mut self, config: netback::Config) {
        self.backend = None;
        let bridge = self.bridge.clone();
        let dom0 = self.dom0.clone();
        let client = Client::connect(&dom0).unwrap();
        let registry = self.registry.clone();
        self.backend = Some(DriverThread::spawn_registered(client, registry, move || {
            VifDriver::new(dom0.clone(), dom0, config, move |_, _| Ok(Attachment::port_of(bridge.clone())))
        }));
    }

    /// Runs a test on a network that maps payloads, and on one that keeps response logs and therefore copies them.
    pub fn each(test: impl Fn(&Machine, &Network)) {
        let directory = tempfile::tempdir().unwrap();
        for inflight_dir in [None, Some(InflightDir::new(directory.path()).unwrap())] {
            let machine = Machine::new();
            let network = Network::start(&machine, netback::Config { inflight_dir, ..Default::default() });
            test(&machine, &network);
        }
    }
}

/// Opens the guest's interface, without waiting until it is up.
pub fn open(guest: &Arc<Domain>, devid: u32, config: netfront::Config) -> Nic {
    Nic::open(guest.clone(), guest.clone(), guest.clone(), devid, config).unwrap()
}

/// Attaches an interface to a guest, opens it, and waits until it is up.
pub fn guest(machine: &Machine, domid: DomId, config: netfront::Config) -> Nic {
    machine.attach_vif(domid, 0);
    let mut nic = open(&machine.domain(domid), 0, config);
    until(&mut nic, Nic::is_up);
    nic
}

/// Processes the interface's events until `done`.
pub fn until(nic: &mut Nic, done: impl Fn(&Nic) -> bool) {
    let deadline = Instant::now() + BOUND;
    while !done(nic) {
        assert!(Instant::now() < deadline, "interface: condition not met within {BOUND:?}");
        nic.wait(false, Duration::from_millis(50)).unwrap();
    }
}

/// Waits for a frame and receives it.
pub fn receive(nic: &mut Nic, into: &mut [u8]) -> (usize, netfront::Meta) {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(received) = nic.recv(into) {
            return received;
        }
        assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
        nic.wait(false, Duration::from_millis(50)).unwrap();
    }
}

/// Sends a frame, and waits for free slots if the ring is full.
pub fn send(nic: &mut Nic, frame: &[u8]) {
    let deadline = Instant::now() + BOUND;
    while nic.send(frame) == netfront::SendOutcome::Full {
        assert!(Instant::now() < deadline, "the ring is full for {BOUND:?}");
        nic.wait(true, Duration::from_millis(50)).unwrap();
    }
}

/// Sends a frame into a bridge by the other end of one of its ports, and waits for room.
pub fn put(port: &mut Pair, frame: &Frame) {
    let deadline = Instant::now() + BOUND;
    while port.send(Frames::of(std::slice::from_ref(frame))).unwrap() == 0 {
        assert!(Instant::now() < deadline, "no room within {BOUND:?}");
        std::thread::yield_now();
    }
    port.flush().unwrap();
}

/// Makes a frame of `len` bytes that depend on `seed`, with an EtherType for experiments (RFC 5342).
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}
