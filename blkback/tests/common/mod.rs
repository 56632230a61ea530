//! A machine in threads: broker, store, and what a toolstack does to them.
#![allow(dead_code, unreachable_pub, unsafe_code)] // Each test program uses its part; raw memory of hostile peers.

pub mod raw;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkback::VbdDriver;
use blkback::vbd::Registry;
use blkfront::{Disk, Options};
use hypervisor::local::{Domain, Event, Sandbox};
use hypervisor::{DomId, Hypervisor};
use nix::sys::eventfd::EventFd;
use xenstore::client::{Access, Permission};
use xenstore::server::{Config, Store};
use xenstore::xenbus::Device;
use xenstore::{Client, Nodes, XenbusState};

/// The bound of every wait in these tests.
pub const BOUND: Duration = Duration::from_secs(20);

/// The guest of most tests, and its disk xvda.
pub const GUEST: DomId = DomId(1);
pub const XVDA: u32 = 51712;

pub struct Machine {
    // The broker goes first: it calls the store.
    pub sandbox: Sandbox,
    pub store: Store,
}

impl Machine {
    pub fn new() -> Machine {
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info").try_init();
        let store = Store::spawn(Config::default()).unwrap();
        let handle = store.handle();
        let sandbox = Sandbox::with_store(Box::new(move |event| {
            let told = match event {
                Event::Connect { domid: DomId(0), stream } => handle.connect(stream),
                Event::Connect { domid, stream } => handle.introduce(domid, stream),
                Event::Gone { domid } => handle.release(domid),
            };
            if let Err(error) = told {
                eprintln!("the store: {error}");
            }
        }))
        .unwrap();
        Machine { sandbox, store }
    }

    pub fn domain(&self, domid: DomId) -> Arc<Domain> {
        self.sandbox.join(domid).unwrap()
    }

    /// Dom0's connection to the store, for the toolstack's part.
    pub fn tool(&self) -> Client {
        self.store.client().unwrap()
    }

    /// Writes a device's nodes as libxl does.
    pub fn attach(&self, guest: DomId, devid: u32, keys: &[(&str, &str)]) -> Device {
        let device = Device::new("vbd", guest, devid);
        let (front, back) = (device.front_path(), device.back_path());
        self.tool()
            .transaction(|tx| {
                tx.mkdir(&front)?;
                tx.set_perms(
                    &front,
                    &[Permission::new(guest, Access::None), Permission::new(DomId::DOM0, Access::Read)],
                )?;
                tx.mkdir(&back)?;
                tx.set_perms(
                    &back,
                    &[Permission::new(DomId::DOM0, Access::None), Permission::new(guest, Access::Read)],
                )?;
                for (key, value) in [("backend", back.as_str()), ("backend-id", "0"), ("state", "1")] {
                    tx.write(&format!("{front}/{key}"), value)?;
                }
                let id = guest.0.to_string();
                let usual =
                    [("frontend", front.as_str()), ("frontend-id", &id), ("online", "1"), ("state", "1")];
                for (key, value) in usual.iter().chain(keys) {
                    tx.write(&format!("{back}/{key}"), value)?;
                }
                Ok(())
            })
            .unwrap();
        device
    }

    /// Asks the backend to close, as libxl does.
    pub fn detach(&self, device: &Device) {
        self.tool()
            .transaction(|tx| {
                tx.write(&format!("{}/online", device.back_path()), "0")?;
                tx.write(&format!("{}/state", device.back_path()), "5")
            })
            .unwrap();
    }

    pub fn remove(&self, device: &Device) {
        self.tool().rm(&device.back_path()).unwrap();
        self.tool().rm(&device.front_path()).unwrap();
    }

    /// Waits until the node's state is this.
    pub fn await_state(&self, path: &str, state: XenbusState) {
        self.await_that(&format!("{path} {state}"), |tool| {
            tool.read_opt_as(&format!("{path}/state")).unwrap() == Some(state)
        });
    }

    /// Waits, woken by any change below `/local`.
    pub fn await_that(&self, what: &str, mut is: impl FnMut(&mut Client) -> bool) {
        let mut tool = self.tool();
        tool.watch("/local", "any").unwrap();
        let deadline = Instant::now() + BOUND;
        while !is(&mut tool) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {what}");
            let _ = tool.wait_event(Some(left)).unwrap();
        }
    }

    /// Runs a block backend in dom0.
    pub fn back(&self) -> Back {
        let hv = self.domain(DomId::DOM0);
        self.back_with(VbdDriver::new(hv.clone()), hv)
    }

    pub fn back_with(&self, mut driver: VbdDriver, hv: Arc<Domain>) -> Back {
        let stop = Arc::new(EventFd::new().unwrap());
        let (told, registry) = (stop.clone(), driver.registry());
        let client = Client::new(hv.store().unwrap());
        let thread = std::thread::spawn(move || {
            xenstore::driver::run(client, DomId::DOM0, &mut driver, told.as_fd()).unwrap();
        });
        Back { stop, registry, thread: Some(thread) }
    }
}

pub struct Back {
    stop: Arc<EventFd>,
    pub registry: Registry,
    thread: Option<JoinHandle<()>>,
}

impl Back {
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// Opens the guest's xvda.
pub fn open(hv: &Arc<Domain>, options: Options) -> Disk {
    try_open(hv, options).unwrap()
}

pub fn try_open(hv: &Arc<Domain>, options: Options) -> blkfront::Result<Disk> {
    let store = Client::new(hv.store().unwrap());
    Disk::open_with(hv.clone(), store, XVDA, options)
}

pub fn options() -> Options {
    Options { patience: BOUND, ..Options::default() }
}

/// Bytes that depend on where they are and on a seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
