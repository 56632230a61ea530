//! Domain 0 in threads: two control loops, a bridge, and a port of it that is the test's.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::toolstack::backend::images::Images;
use ::toolstack::opener::Opener;
use blkback::VbdDriver;
use bridge::port::pair::Pair;
use bridge::{Batch, Bridge, Caps, Frame, Frames, Port};
use hypervisor::local::Domain;
use netback::{Attachment, VifDriver};
use nix::sys::eventfd::EventFd;
use ring_abi::DomId;
use ring_abi::netif::MTU_DEFAULT;
use testkit::{BOUND, LossyStore, Machine};
use xenbus::driver::{BackDriver, run};
use xenbus::{Device, Keys};
use xenstore::Client;

/// Frames that the test's port queues.
const QUEUE: usize = 64;

/// A dom0, which ends when it is dropped.
pub(crate) struct Dom0 {
    store: Arc<LossyStore>,
    _backends: [Backend; 2],
    host: Pair,
    // Dropped after the backends, which have ports of it.
    _bridge: Arc<Bridge>,
}

impl Dom0 {
    /// Joins the machine as dom0, once the one before has left it.
    pub(crate) fn start(machine: &Machine) -> Dom0 {
        let domain = join(machine, DomId::DOM0);
        let store = LossyStore::new(domain.clone());
        let bridge = Arc::new(Bridge::start(bridge::Config::default()).unwrap());
        let (host, port) = Pair::new(Caps::plain(MTU_DEFAULT), QUEUE).unwrap();
        bridge.attach("host", Box::new(port)).unwrap();
        let of_vifs = bridge.clone();
        let machine_dir = std::path::Path::new("soak");
        let opener = Opener::in_this_process().unwrap();
        let mut images = Images::new(store.clone(), false, machine_dir, opener).unwrap();
        let opener = Box::new(move |device: &Device, keys: &Keys| images.open(device, keys));
        let mut vbds = VbdDriver::with_opener(domain.clone(), domain.clone(), opener);
        vbds.set_max_queues(2);
        let vifs = VifDriver::new(domain.clone(), domain, netback::Config::default(), move |_, _| {
            Ok(Attachment::port_of(of_vifs.clone()))
        });
        let backends = [Backend::start(&store, vbds), Backend::start(&store, vifs)];
        Dom0 { store, _backends: backends, host, _bridge: bridge }
    }

    /// Ends dom0 as if it were killed: from now on it writes nothing to the store.
    pub(crate) fn kill(self) {
        self.store.cut();
    }

    /// Sends a frame to the bridge.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.host.send(Frames::of(&[Frame::from_slice(frame)])).unwrap();
        self.host.flush().unwrap();
    }

    /// The frames that the bridge has sent.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let mut batch = Batch::new(QUEUE);
        self.host.recv(&mut batch).unwrap();
        batch.frames().iter().map(Frame::to_vec).collect()
    }
}

/// A backend's control loop in a thread, which may lose its store.
struct Backend {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(store: &Arc<LossyStore>, mut driver: impl BackDriver + Send + 'static) -> Backend {
        let stop = Arc::new(EventFd::new().unwrap());
        let stop_of_thread = stop.clone();
        let client = Client::connect(store).unwrap();
        let thread = std::thread::spawn(move || {
            if let Err(error) = run(client, DomId::DOM0, &mut driver, stop_of_thread.as_fd()) {
                assert!(error.is_disconnected(), "{error}");
            }
        });
        Backend { stop, thread: Some(thread) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the backend panicked");
    }
}

/// Joins a machine as a domain, once nobody else is that domain.
pub(crate) fn join(machine: &Machine, domid: DomId) -> Arc<Domain> {
    let deadline = Instant::now() + BOUND;
    loop {
        match machine.sandbox.join(domid) {
            Ok(domain) => return domain,
            Err(error) => assert!(Instant::now() < deadline, "domain {domid}: {error}"),
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
