//! `xpv dom0`: runs the backends, and the bridges between guests and the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use blkback::engine::BaseCache;
use blkback::handshake::MAX_INDIRECT_SEGMENTS;
use blkback::{DataPath, Tuning, VbdDriver};
use event_loop::Essential;
use hypervisor::Hypervisor;
use hypervisor::local::Domain;
use hypervisor::xen::Xen;
use inflight::InflightDir;
use netback::Ports;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::DomId;
use xenbus::driver::{self, BackDriver, Registry};
use xenbus::{Device, Keys};
use xenstore::Client;

use crate::backend::bridge_answers::BridgeAnswers;
use crate::backend::bridge_memory::BridgeMemory;
use crate::backend::bridges::Bridges;
use crate::backend::governed::Governed;
use crate::backend::image_answers;
use crate::backend::image_controls::ImageControls;
use crate::backend::images::Images;
use crate::backend::kernel_backends::SkipKernelOwned;
use crate::backend::policy_file::{self, PolicyFile};
use crate::backend::policy_in_force::PolicyInForce;
use crate::backend::stale;
use crate::capture::Captures;
use crate::config::cache_size::CacheSize;
use crate::config::disk_queues;
use crate::config::host_bridge::BridgeConfig;
use crate::config::vif::DEFAULT_BRIDGE;
use crate::control::devices::Devices;
use crate::control::service::ControlService;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::machine::{Machine, process};
use crate::opener::Opener;
use crate::opener::process::OpenerProcess;
use crate::sandbox::{self, InForce, Role};
use crate::serving_lock::{self, ServingLock};

/// Serve disks and network interfaces as domain 0
///
/// Takes over all existing devices: when it was killed and is started again, guests resume. Answers on DIR/control.sock
/// what it has counted for each device, which xpv list, block-list and network-list show with --json: see docs/control.md.
///
/// With --xen it serves a real Xen host, in dom0 or in any driver domain, beside xl: vbds with a line such as
/// disk=["format=raw,vdev=xvda,access=rw,script=/bin/true,target=/srv/a.img"], vifs as an interface vifDOMID.DEVID
/// for xl's own scripts, or on a bridge of this program that is named by --bridge. See docs/xen.md. While another process
/// serves the host, whatever its DIR, it waits for the end of that, and does nothing else.
///
/// On SIGHUP it reads the file of --policy again, for devices that are connected too: all of it, or with an error in the log
/// nothing. SIGTERM and SIGINT end it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve the devices of the Xen domain that this program runs in
    #[arg(long)]
    xen: bool,

    /// A bridge, and its ports to the host: xenbr0, or xenbr0=tap:host0,packet:eth1; behind a port its settings, such as
    /// packet:eth1,vlan=10p/20,isolated=on, and anywhere those of the bridge: ageing_time=SECONDS, fdb_max_learned=ENTRIES,
    /// group_fwd_mask=MASK (docs/networks.md)
    /// [default: xenbr0, and none with --xen or --wire]
    #[arg(long = "bridge", value_name = "NAME[=PORT,...]")]
    bridges: Vec<BridgeConfig>,

    /// A wire between a port to the host and the one vif that names it as its bridge: wire0=packet:eth1. It passes every
    /// frame, and a vif whose pages are flipped (xpv guest --rx) has them read into its pages without a copy
    #[arg(long = "wire", value_name = "NAME=PORT", value_parser = BridgeConfig::wire)]
    wires: Vec<BridgeConfig>,

    /// Run without a bridge
    #[arg(long, conflicts_with_all = ["bridges", "wires"])]
    no_bridge: bool,

    /// Open images below this directory alone, several times for several; devices may be symbolic links there
    /// [default: anywhere]
    #[arg(long = "images", value_name = "DIR")]
    image_dirs: Vec<PathBuf>,

    /// Limits of disks and interfaces by what they are, in TOML (docs/limits.md): what xl cannot pass on; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Memory for what guests read of images that are below their own, shared by all of them: bytes, or 256M; 0 for none
    /// [default: a sixteenth of the memory, 1G at most]
    #[arg(long, value_name = "SIZE")]
    base_cache: Option<CacheSize>,

    /// How backends of disks access guests' pages [default: map, and persist with --xen, where map is not possible]
    #[arg(long = "reach", value_name = "METHOD")]
    data_path: Option<DataPathArg>,

    /// The most pages that disks of frontends with persistent grants keep mapped together
    /// [default: half of vm.max_map_count]
    #[arg(long, value_name = "PAGES")]
    max_persistent_grants: Option<usize>,

    /// The most queues that disks offer, 1 to 8: each that a guest uses has a thread [default: the processors]
    #[arg(long, value_name = "QUEUES", value_parser = disk_queues::parser())]
    queues: Option<u32>,

    /// The most segments, of 4 KiB each, that disks offer for a request beyond its own 11, 0 to 4096; 0 for none
    #[arg(long, value_name = "SEGMENTS", default_value_t = 256, value_parser = disk_segments())]
    indirect_segments: u16,
}

fn disk_segments() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(MAX_INDIRECT_SEGMENTS))
}

/// How backends of disks access guests' pages. Where the kernel cannot do I/O in mapped pages, their bytes are always copied.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DataPathArg {
    /// Map pages for each request
    Map,
    /// Keep pages mapped if the frontend reuses them (feature-persistent), and copy to and from them
    Persist,
    /// Copy by the hypervisor
    Copy,
}

/// Serves devices until a signal or until the machine is gone.
///
/// `sandbox`: what the process does not need is given up first.
///
/// # Errors
/// A bridge's port cannot be opened, another process is domain 0, or the machine is gone.
pub fn run(args: &Args, dir: &Dir, sandbox: bool) -> Result<()> {
    let (stop, hangup) = process::stop_and_hangup_signals()?;
    process::survive_file_size_limit()?;
    hypervisor::raise_descriptor_limit();
    args.check_data_path()?;
    if args.xen {
        dir.make()?;
    }
    let policy = args.policy_path()?.as_deref().map(PolicyFile::read).transpose()?;
    // It has the privileges that this process is about to give up.
    let mut opener =
        OpenerProcess::start(dir, &args.image_dirs, policy.as_ref().map(PolicyFile::path), sandbox)?;
    let sandbox = sandbox::enter(Role::Dom0, dir.path(), sandbox)?;
    let _lock = match args.xen {
        true => {
            let stops = [stop.as_fd(), opener.exited().as_fd()];
            match ServingLock::wait(serving_lock::XEN.as_ref(), &stops)? {
                Some(lock) => Some(lock),
                None if process::is_readable(&stops[..1])? => return Ok(()),
                None => return Err(opener.end()),
            }
        }
        // The broker has one process as domain 0.
        false => None,
    };
    // Opened before joining the machine: a failure must have no effect on it.
    let bridges = Bridges::start(&args.bridges()?)?;
    let images = opener.wait_ready()?.with_cache(args.base_cache()?);
    let process = Process { args, dir, sandbox, stop: stop.as_fd(), hangup, opener, policy };
    match args.xen {
        true => xen(process, bridges, images),
        false => local(process, bridges, images),
    }
}

/// What this process has from its start on.
struct Process<'a> {
    args: &'a Args,
    dir: &'a Dir,
    sandbox: InForce,
    /// Readable on a signal that ends it.
    stop: BorrowedFd<'a>,
    /// Readable on SIGHUP.
    hangup: UnixStream,
    opener: OpenerProcess,
    policy: Option<PolicyFile>,
}

impl Process<'_> {
    fn policy(&self) -> Option<PolicyInForce> {
        self.policy.as_ref().map(|policy| policy.in_force().clone())
    }
}

impl Args {
    fn check_data_path(&self) -> Result<()> {
        match (self.xen, self.data_path) {
            (true, Some(DataPathArg::Map)) => Err(Error::other(
                "--reach map: expected persist or copy with --xen: dom0's kernel is damaged where a process is killed while the \
                 kernel does I/O in pages of guests that it has mapped",
            )),
            _ => Ok(()),
        }
    }

    fn tuning(&self) -> Tuning {
        let data_path = match (self.data_path, self.xen) {
            (Some(DataPathArg::Map), _) | (None, false) => DataPath::Map,
            (Some(DataPathArg::Persist), _) | (None, true) => DataPath::Persistent,
            (Some(DataPathArg::Copy), _) => DataPath::Copy,
        };
        // System calls cost more where they trap into Xen: fewer a request.
        let batch = if self.xen { 64 } else { Tuning::default().batch };
        Tuning { data_path, batch, ..Tuning::default() }
    }

    fn max_persistent_grants(&self) -> usize {
        self.max_persistent_grants.unwrap_or_else(|| hypervisor::max_mappings() / 2)
    }

    /// The policy's path, which another process opens too.
    fn policy_path(&self) -> Result<Option<PathBuf>> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|e| Error::file(path, "finding the policy", e))
        };
        self.policy.as_ref().map(absolute).transpose()
    }

    fn base_cache(&self) -> Result<BaseCache> {
        let CacheSize(bytes) = self.base_cache.unwrap_or_default();
        BaseCache::new(bytes).or_else(|error| match self.base_cache {
            Some(_) => Err(Error::io(format!("--base-cache {bytes}: mapping memory"), error)),
            None => {
                tracing::warn!(%error, bytes, "no memory for a cache of base images: none is used");
                Ok(BaseCache::default())
            }
        })
    }

    fn bridges(&self) -> Result<Vec<BridgeConfig>> {
        let default_bridge =
            || DEFAULT_BRIDGE.parse().map_err(|e| Error::Other(format!("bridge {DEFAULT_BRIDGE}: {e}")));
        let named: Vec<_> = self.bridges.iter().chain(&self.wires).cloned().collect();
        match named.is_empty() && !self.no_bridge && !self.xen {
            true => Ok(vec![default_bridge()?]),
            false => Ok(named),
        }
    }
}

fn local(process: Process<'_>, bridges: Bridges, images: Opener) -> Result<()> {
    let &Process { args, dir, .. } = &process;
    let hv: Arc<dyn Hypervisor> = Arc::new(Domain::join(dir.path(), DomId::DOM0)?);
    Machine::publish_bridges(&mut Client::connect(&hv)?, bridges.names())?;
    let opener = images.clone();
    let images = Images::new(hv.clone(), false, dir.path(), images)?;
    let controls = images.controls();
    let mut vbds = vbd_driver(&hv, images);
    vbds.set_tuning(args.tuning());
    vbds.set_max_persistent_grants(args.max_persistent_grants());
    vbds.set_max_queues(disk_queues::count(args.queues));
    vbds.set_max_indirect_segments(args.indirect_segments);
    let memory = BridgeMemory::restore(hv.clone(), hv.domid(), &bridges, &args.bridges()?)?;
    let vifs = netback::VifDriver::new(hv.clone(), hv.clone(), netback::Config::default(), {
        let (bridges, memory) = (bridges.clone(), memory.clone());
        move |_, keys| Ok(memory.until_its_end(bridges.attach(keys)?, keys))
    });
    let bridges = (memory, bridges, vifs.ports());
    let vbds = Governed::new(vbds, process.policy(), hv.clone())?;
    let vifs = Governed::new(vifs, process.policy(), hv.clone())?;
    serve(process, &*hv, (opener, controls), vbds, vifs, bridges)
}

fn xen(process: Process<'_>, bridges: Bridges, images: Opener) -> Result<()> {
    let &Process { args, dir, .. } = &process;
    let hv: Arc<dyn Hypervisor> = Arc::new(Xen::open()?);
    let inflight_dir = InflightDir::new(dir.inflight())?;
    let opener = images.clone();
    let images = Images::new(hv.clone(), true, dir.path(), images)?;
    let controls = images.controls();
    let mut vbds = vbd_driver(&hv, images);
    vbds.set_tuning(args.tuning());
    vbds.set_max_persistent_grants(args.max_persistent_grants());
    vbds.set_max_queues(disk_queues::count(args.queues));
    vbds.set_max_indirect_segments(args.indirect_segments);
    stale::remove(&mut Client::connect(&hv)?, hv.domid(), dir.path(), &inflight_dir)?;
    vbds.set_inflight_dir(inflight_dir.clone());
    let config = netback::Config {
        data_path: netback::DataPath::Copy,
        inflight_dir: Some(inflight_dir),
        ..netback::Config::default()
    };
    let machine = dir.path().to_owned();
    let memory = BridgeMemory::restore(hv.clone(), hv.domid(), &bridges, &args.bridges()?)?;
    let vifs = netback::VifDriver::new(hv.clone(), hv.clone(), config, {
        let (bridges, memory) = (bridges.clone(), memory.clone());
        move |device, keys| {
            let attachment = bridges.attach_or_create_tap(&machine, device, keys)?;
            Ok(memory.until_its_end(attachment, keys))
        }
    });
    let bridges = (memory, bridges, vifs.ports());
    let vbds = Governed::new(vbds, process.policy(), hv.clone())?;
    let vifs = Governed::new(vifs, process.policy(), hv.clone())?;
    serve(process, &*hv, (opener, controls), SkipKernelOwned::new(vbds), SkipKernelOwned::new(vifs), bridges)
}

fn vbd_driver(hv: &Arc<dyn Hypervisor>, mut images: Images) -> VbdDriver {
    let opener = Box::new(move |device: &Device, keys: &Keys| images.open(device, keys));
    VbdDriver::with_opener(hv.clone(), hv.clone(), opener)
}

fn serve(
    mut process: Process<'_>,
    hv: &dyn Hypervisor,
    (opener, images): (Opener, ImageControls),
    mut vbds: impl BackDriver + Send,
    mut vifs: impl BackDriver + Send,
    (memory, bridges, ports): (BridgeMemory, Bridges, Ports),
) -> Result<()> {
    let vbd_devices = Registry::default();
    let vif_devices = Registry::default();
    let devices = [(vbds.kind(), &vbd_devices), (vifs.kind(), &vif_devices)];
    let devices = devices.map(|(kind, registry)| (kind.to_owned(), registry.clone()));
    let domid = hv.domid();
    let answer = move |query: &_| image_answers::answer(&images, domid, query);
    let bridges = BridgeAnswers::new(domid, bridges, ports.clone()).with_memory(memory);
    let devices = Devices::new(domid, devices).with_images(Box::new(answer));
    let devices = devices.with_bridges(Box::new(move |query| bridges.answer(query)));
    let control = ControlService::new(process.dir, devices, Captures::new(ports));
    // All that this process connects to, it has; a local machine's hypervisor may have a successor, to which it connects again.
    if process.args.xen {
        process.sandbox.refuse_connecting()?;
    }
    tracing::info!(domid = %hv.domid(), sandbox = %process.sandbox, "serving");
    process::report_ready();
    let shutdown = Shutdown::new(hv.domid())?;
    thread::scope(|scope| {
        let shutdown = &shutdown;
        let vbd = scope.spawn(move || shutdown.run_driver(hv, &mut vbds, &vbd_devices));
        let vif = scope.spawn(move || shutdown.run_driver(hv, &mut vifs, &vif_devices));
        let control = scope.spawn(move || control.run(shutdown.event.as_fd()));
        let Process { policy, hangup, opener: opener_process, stop, .. } = &mut process;
        let (policy, hangup) = (&*policy, &*hangup);
        let policy = scope
            .spawn(move || policy_file::follow(policy.as_ref(), &opener, hangup, shutdown.event.as_fd()));
        let waited = shutdown.wait(*stop, opener_process);
        shutdown.signal();
        let outcomes =
            [vbd, vif].map(|thread| thread.join().unwrap_or_else(|_| Err(Error::other("a driver panicked"))));
        // Devices are served without them: that one panicked was logged.
        let _ = (control.join(), policy.join());
        outcomes.into_iter().fold(waited, Result::and)
    })
}

/// Stops the drivers' threads on a signal, or once one of them has failed.
struct Shutdown {
    domid: DomId,
    event: EventFd,
}

impl Shutdown {
    fn new(domid: DomId) -> Result<Shutdown> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).map_err(|e| Error::io("making an eventfd", e))?;
        Ok(Shutdown { domid, event })
    }

    /// Makes the descriptor readable for good, as nothing reads it.
    fn signal(&self) {
        let _ = self.event.write(1);
    }

    fn run_driver(&self, hv: &dyn Hypervisor, driver: &mut dyn BackDriver, devices: &Registry) -> Result<()> {
        let _essential = Essential;
        let outcome = driver::run_connected(&hv, self.domid, driver, devices, self.event.as_fd());
        self.signal();
        Ok(outcome?)
    }

    /// Waits until one of them is to end all; an error if the process that opens images has ended.
    fn wait(&self, stop: BorrowedFd<'_>, opener: &mut OpenerProcess) -> Result<()> {
        let ends = [stop, self.event.as_fd()];
        process::wait_any(&[ends[0], ends[1], opener.exited().as_fd()])?;
        match process::is_readable(&ends)? {
            true => Ok(()),
            false => Err(opener.end()),
        }
    }
}
