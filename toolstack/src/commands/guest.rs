//! `xpv guest`: the process of a guest.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::Hypervisor;
use hypervisor::local::{Domain, DomainInfo, Options};
use hypervisor::xen::Xen;
use netfront::Config;
use nix::unistd::{Uid, chown};

use crate::config::disk_queues;
use crate::config::rx::RxMethod;
use crate::dir::{self, Dir};
use crate::error::{Error, Result};
use crate::guest::buffers::CommonBuffers;
use crate::guest::{kernel, netns, watch};
use crate::machine::{Machine, process};
use crate::sandbox::{self, Role, user};

/// Run as a guest that `xpv create` made, and make its devices usable by ordinary programs
///
/// Each disk is exported over NBD at DIR/NAME/DEV.nbd: try `nbdinfo nbd+unix:///?socket=DIR/NAME/xvda.nbd`. Each
/// interface is a tap, named by vifname= or else vifDOMID.DEVID, or eth0, eth1, ... in a namespace of the guest's
/// own. If another machine on this host has an interface vifDOMID.DEVID, it is called vifDOMID.DEVID-XXXX, with four
/// digits that depend on DIR: `xpv network-list` shows the name.
///
/// With --xen, inside a domain of a real Xen host, it runs that domain's frontends in place of the kernel's: disks
/// are at DIR/DEV.nbd, interfaces are taps xpv0, xpv1, ... after the numbers of their vifs. Devices bound to
/// xen-blkfront or xen-netfront are left to them. It needs the kernel modules xen-evtchn, xen-gntdev, xen-gntalloc
/// and tun, and more granted pages than xen-gntalloc allows at first: `modprobe xen-gntalloc limit=8192`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    #[arg(required_unless_present = "xen", conflicts_with = "xen")]
    name: Option<String>,

    /// Run the frontends of the Xen domain that this program runs in
    #[arg(long)]
    xen: bool,

    /// Put the interfaces into this network namespace
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,

    /// Negotiate no checksum and no segmentation offload
    #[arg(long)]
    no_offload: bool,

    /// How the interfaces receive
    #[arg(long, value_name = "METHOD", default_value = "copy")]
    rx: RxMethod,

    /// The most queues of a disk, 1 to 8, if its backend offers as many [default: the processors]
    #[arg(long, value_name = "QUEUES", value_parser = disk_queues::parser())]
    queues: Option<u32>,
}

/// Runs the guest until a signal or until the machine is gone.
///
/// `sandbox`: what the process does not need is given up first.
///
/// # Errors
/// There is no such domain, another process runs it, or the machine is gone.
pub fn run(args: &Args, dir: &Dir, sandbox: bool) -> Result<()> {
    let stop = process::stop_signal()?;
    let netns = args.netns.as_deref().map(netns::open).transpose()?.map(Arc::new);
    if args.xen {
        dir::make(dir.path())?;
    }
    let local = args.name.as_deref().map(|name| find(dir, name, netns.is_some())).transpose()?;
    let sandbox = sandbox::enter(Role::Guest, dir.path(), sandbox)?;
    let offload =
        Config { csum: !args.no_offload, gso: !args.no_offload, rx: args.rx.into(), ..Config::default() };
    let on_xen = local.is_none();
    let (hv, directory): (Arc<dyn Hypervisor>, PathBuf) = match local {
        Some(info) => (Arc::new(Domain::join(dir.path(), info.domid)?), dir.guest(&info.name)),
        None => (Arc::new(Xen::open()?), dir.path().to_owned()),
    };
    dir::make(&directory)?;
    let _lock = on_xen.then(|| kernel::lock_domain(&directory)).transpose()?;
    let machine = dir.path().to_owned();
    let pages = if on_xen { Xen::max_granted_pages() } else { Options::default().arena_pages as usize };
    let buffers = CommonBuffers::of_pages(pages);
    let queues = disk_queues::count(args.queues);
    let guest = watch::Guest { hv, machine, directory, on_xen, netns, offload, buffers, queues };
    tracing::info!(domid = %guest.hv.domid(), directory = %guest.directory.display(), %sandbox, "running");
    watch::run(&guest, stop.as_fd())
}

/// Finds the domain of a guest of the local machine. If root has started this process for another user, it becomes that user's, and the
/// guest's directory too.
fn find(dir: &Dir, name: &str, enters_netns: bool) -> Result<DomainInfo> {
    let info = Machine::connect(dir)?.find_guest(name)?;
    if Uid::effective().is_root() && info.uid != 0 {
        let directory = dir.guest(&info.name);
        dir::make(&directory)?;
        chown(&directory, Some(Uid::from_raw(info.uid)), None)
            .map_err(|e| Error::file(&directory, "giving it to the guest's user", e))?;
        user::become_user(info.uid, enters_netns)?;
    }
    Ok(info)
}
