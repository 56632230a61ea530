//! The smallest block backend on a real Xen host: serves disks whose line in xl.cfg has a `script=` (docs/xen.md).
//!
//! It runs until it is killed. `xpv dom0` does the same for all kinds of devices; this is the least code that it takes.

use blkback::VbdDriver;
use hypervisor::Hypervisor;
use hypervisor::xen::Xen;
use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;
use std::sync::Arc;
use xenstore::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter("info").init();
    let xen: Arc<dyn Hypervisor> = Arc::new(Xen::open()?);
    let store = Client::connect(&xen)?;
    let mut driver = VbdDriver::new(xen.clone(), xen.clone());
    let stop = EventFd::new()?;
    xenbus::driver::run(store, xen.domid(), &mut driver, stop.as_fd())?;
    Ok(())
}
