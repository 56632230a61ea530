//! A machine of threads with one disk: broker, store, a backend in dom0, and a guest's open disk.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blkback::VbdDriver;
use blkback::device::Tuning;
use blkfront::{Disk, Options};
use hypervisor::local::{Event, Sandbox};
use hypervisor::{DomId, Hypervisor};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::EventFd;
use nix::unistd::Pid;
use xenstore::client::{Access, Permission};
use xenstore::server::{Config, Store};
use xenstore::xenbus::Device;
use xenstore::{Client, Nodes};

const GUEST: DomId = DomId(1);
const XVDA: u32 = 51712;

/// How both ends of the disk are to behave.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// The ring's pages as a power of two.
    pub(super) ring_page_order: u32,
    /// How long each side polls before it sleeps.
    pub(super) spin: Duration,
}

/// Everything that keeps the disk alive; dropped in this order.
pub(super) struct Machine {
    /// The guest's disk.
    pub(super) disk: Disk,
    stop: Arc<EventFd>,
    back: Option<JoinHandle<()>>,
    _sandbox: Sandbox,
    _store: Store,
}

impl Machine {
    /// A machine whose disk is what `params` says.
    ///
    /// # Errors
    /// Whatever went wrong, in words.
    pub(super) fn new(params: &str, setup: Setup) -> Result<Machine, String> {
        // A core for each side: threads inherit where they may run.
        run_on(1);
        let machine = Machine::start(params, setup);
        run_on(0);
        machine
    }

    fn start(params: &str, setup: Setup) -> Result<Machine, String> {
        let store = Store::spawn(Config::default()).map_err(|e| e.to_string())?;
        let handle = store.handle();
        let sandbox = Sandbox::with_store(Box::new(move |event| {
            // A domain that the store refuses finds its connection closed.
            let _ = match event {
                Event::Connect { domid: DomId(0), stream } => handle.connect(stream),
                Event::Connect { domid, stream } => handle.introduce(domid, stream),
                Event::Gone { domid } => handle.release(domid),
            };
        }))
        .map_err(|e| e.to_string())?;
        attach(&mut store.client().map_err(|e| e.to_string())?, params).map_err(|e| e.to_string())?;
        let (stop, back) = serve(&sandbox, setup)?;
        let guest = sandbox.join(GUEST).map_err(|e| e.to_string())?;
        let client = Client::new(guest.store().map_err(|e| e.to_string())?);
        let options =
            Options { ring_page_order: setup.ring_page_order, spin: setup.spin, ..Options::default() };
        let disk = Disk::open_with(guest, client, XVDA, options).map_err(|e| e.to_string())?;
        Ok(Machine { disk, stop, back: Some(back), _sandbox: sandbox, _store: store })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(back) = self.back.take() {
            let _ = back.join();
        }
    }
}

/// Puts this thread on a core, where there is one of that number.
fn run_on(core: usize) {
    let mut set = CpuSet::new();
    // A machine with one core shares it.
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

fn serve(sandbox: &Sandbox, setup: Setup) -> Result<(Arc<EventFd>, JoinHandle<()>), String> {
    let dom0 = sandbox.join(DomId::DOM0).map_err(|e| e.to_string())?;
    let client = Client::new(dom0.store().map_err(|e| e.to_string())?);
    let stop = Arc::new(EventFd::new().map_err(|e| e.to_string())?);
    let told = stop.clone();
    let mut driver = VbdDriver::new(dom0);
    driver.set_tuning(Tuning { spin: setup.spin, ..Tuning::default() });
    let back = std::thread::spawn(move || {
        if let Err(error) = xenstore::driver::run(client, DomId::DOM0, &mut driver, told.as_fd()) {
            eprintln!("the backend: {error}");
        }
    });
    Ok((stop, back))
}

/// What a toolstack writes.
fn attach(tool: &mut Client, params: &str) -> xenstore::client::Result<()> {
    let device = Device::new("vbd", GUEST, XVDA);
    let (front, back) = (device.front_path(), device.back_path());
    tool.mkdir(&front)?;
    tool.set_perms(
        &front,
        &[Permission::new(GUEST, Access::None), Permission::new(DomId::DOM0, Access::Read)],
    )?;
    tool.mkdir(&back)?;
    tool.set_perms(
        &back,
        &[Permission::new(DomId::DOM0, Access::None), Permission::new(GUEST, Access::Read)],
    )?;
    for (key, value) in [("backend", back.as_str()), ("backend-id", "0"), ("state", "1")] {
        tool.write(&format!("{front}/{key}"), value)?;
    }
    let id = GUEST.to_string();
    for (key, value) in
        [("frontend", front.as_str()), ("params", params), ("state", "1"), ("frontend-id", &id)]
    {
        tool.write(&format!("{back}/{key}"), value)?;
    }
    Ok(())
}
