//! `xpv guest`: the process that is a guest.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::Hypervisor;
use hypervisor::local::Domain;
use hypervisor::xen::Xen;
use netfront::Config;

use crate::dir::{self, Dir};
use crate::error::Result;
use crate::guest::{netns, real, watch};
use crate::machine::{Machine, process};

/// Be a guest that `xpv create` made, and give its devices to ordinary programs
///
/// Each disk is exported over NBD at DIR/NAME/DEV.nbd: try `nbdinfo nbd+unix:///?socket=DIR/NAME/xvda.nbd`. Each
/// interface is a tap, named by vifname= or else vifDOMID.DEVID, or eth0, eth1, ... in a namespace of the guest's
/// own. Where another machine on this host has an interface vifDOMID.DEVID, it is called vifDOMID.DEVID-XXXX, with
/// four digits that depend on DIR: `xpv network-list --json` says so.
///
/// With --xen, inside a domain of a real Xen host, it is that domain's frontends in place of the kernel's: disks
/// are at DIR/DEV.nbd, interfaces are taps xpv0, xpv1, ... after the numbers of their vifs. Devices that
/// xen-blkfront and xen-netfront hold are left to them. It needs the kernel modules xen-evtchn, xen-gntdev,
/// xen-gntalloc and tun, and more granted pages than xen-gntalloc allows at first:
/// `modprobe xen-gntalloc limit=8192`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or number
    #[arg(required_unless_present = "xen", conflicts_with = "xen")]
    name: Option<String>,

    /// Be the domain of a real Xen host that this runs in
    #[arg(long)]
    xen: bool,

    /// Put its interfaces into this network namespace
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,

    /// Send and receive finished frames only: no checksum and no segmentation is left to the other end
    #[arg(long)]
    no_offload: bool,
}

/// Is the guest until told to end, or until the machine is gone.
///
/// # Errors
/// There is no such domain, another process is it, or the machine is gone.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let stop = process::stop_signal()?;
    let netns = args.netns.as_deref().map(netns::open).transpose()?.map(Arc::new);
    let offload = Config { csum: !args.no_offload, gso: !args.no_offload };
    let local = args.name.as_deref().map(|name| join(dir, name)).transpose()?;
    let real = local.is_none();
    let (hv, directory) = match local {
        Some(local) => local,
        None => (Arc::new(Xen::open()?) as Arc<dyn Hypervisor>, dir.path().to_owned()),
    };
    dir::make(&directory)?;
    let _lock = real.then(|| real::alone(&directory)).transpose()?;
    let machine = dir.path().to_owned();
    let guest = watch::Guest { hv, machine, directory, real, netns, offload };
    tracing::info!(domid = %guest.hv.domid(), directory = %guest.directory.display(), "the guest runs");
    watch::run(&guest, stop.as_fd())
}

/// A domain of the local machine, and the directory of the guest that it is.
fn join(dir: &Dir, name: &str) -> Result<(Arc<dyn Hypervisor>, PathBuf)> {
    let info = Machine::connect(dir)?.find_guest(name)?;
    Ok((Arc::new(Domain::join(dir.path(), info.domid)?), dir.guest(&info.name)))
}
