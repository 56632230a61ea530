//! `xpv guest`: the process that is a guest.

use std::os::fd::AsFd;
use std::sync::Arc;

use hypervisor::local::Domain;

use crate::dir::Dir;
use crate::error::Result;
use crate::guest::{netns, watch};
use crate::machine::{Machine, process};

/// Be a guest that `xpv create` made, and give its devices to ordinary programs
///
/// Each disk is exported over NBD at DIR/NAME/DEV.nbd: try `nbdinfo nbd+unix:///?socket=DIR/NAME/xvda.nbd`. Each
/// interface is a tap, named as dom0 names it, or eth0, eth1, ... in a namespace of the guest's own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or number
    name: String,

    /// Put its interfaces into this network namespace
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,
}

/// Is the guest until told to end, or until the machine is gone.
///
/// # Errors
/// There is no such domain, another process is it, or the machine is gone.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let stop = process::stop_signal()?;
    let info = Machine::connect(dir)?.find_guest(&args.name)?;
    let netns = args.netns.as_deref().map(netns::open).transpose()?.map(Arc::new);
    let hv = Arc::new(Domain::join(dir.path(), info.domid)?);
    let guest = watch::Guest { hv, dir: dir.clone(), name: info.name, netns };
    tracing::info!(domid = %info.domid, name = guest.name, "the guest runs");
    watch::run(&guest, stop.as_fd())
}
