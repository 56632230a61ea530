//! Creates and destroys guests. If a guest cannot be created, everything created of it is removed again.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use ring_abi::DomId;
use ring_abi::netif::Mac;
use xenstore::Nodes;

use super::attached::{self, Attached};
use super::device::NewDevice;
use super::process::{self, ChildProcess, ProcessOptions};
use super::{Machine, domain, progress, vbd, vif};
use crate::config::GuestConfig;
use crate::config::domain::Placed;
use crate::config::rx::RxMethod;
use crate::dir::{self, Dir};
use crate::error::{Error, Origin, Result, chain};
use crate::output;

/// How a guest is to be created.
pub struct CreateOptions<'a> {
    /// Where the configuration was read from, for errors.
    pub origin: &'a Origin,
    /// Starts the guest's process. It is called when the domain and all its nodes exist.
    pub start: &'a dyn Fn(&Machine) -> Result<ChildProcess>,
    /// How long the devices may take to connect.
    pub timeout: Duration,
}

/// How a guest's interfaces are made.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces<'a> {
    /// The network namespace that they are put into.
    pub netns: Option<&'a str>,
    /// How they receive.
    pub rx: RxMethod,
}

/// Starts `xpv guest` for a guest. If `die_with_parent`, it is killed when this process exits and inherits its output;
/// otherwise it writes to the guest's log.
pub fn start(
    machine: &Machine,
    name: &str,
    interfaces: Interfaces<'_>,
    die_with_parent: bool,
) -> Result<ChildProcess> {
    let log = (!die_with_parent).then(|| machine.dir.log(name));
    let mut command = process::command(&machine.dir, &ProcessOptions { die_with_parent, log })?;
    command.arg("guest").arg("--rx").arg(interfaces.rx.name());
    if let Some(netns) = interfaces.netns {
        command.arg("--netns").arg(netns);
    }
    // A name may begin with a hyphen.
    command.arg("--").arg(name);
    process::spawn(command)
}

/// Creates a guest and waits until all its devices are connected. `check` is called repeatedly meanwhile: its error
/// cancels the creation.
///
/// # Errors
/// Why the guest could not be created. Everything created of it has been removed then.
pub fn create(
    machine: &mut Machine,
    config: &GuestConfig,
    options: &CreateOptions<'_>,
    check: impl FnMut() -> Result<()>,
) -> Result<(DomId, ChildProcess)> {
    let own = Uid::effective();
    let uid = user(config, own)?;
    for disk in &config.disks {
        vbd::check_target(options.origin, disk)?;
    }
    machine.await_dom0()?;
    for vif in &config.vifs {
        check_bridge(machine, options.origin, &vif.bridge)?;
    }
    if uid != own.as_raw() {
        machine.dir.open_to_guests()?;
    }
    let domid = create_domain(machine, &config.name, uid)?;
    match start_devices(machine, config, options, domid, check) {
        Ok(process) => Ok((domid, process)),
        Err(error) => {
            // The error of the creation is returned rather than that of the removal.
            if let Err(e) = remove(machine, domid, &config.name) {
                output::message(format_args!(
                    "while removing what was created of {}: {}",
                    config.name,
                    chain(&e)
                ));
            }
            Err(error)
        }
    }
}

/// The user as whom the guest's process is to run, for a caller who is `own`.
fn user(config: &GuestConfig, own: Uid) -> Result<u32> {
    match &config.uid {
        Some(Placed { origin, value: uid }) if !own.is_root() && own.as_raw() != *uid => {
            let expected = format!("{own}, as only root starts processes of other users");
            Err(origin.invalid("uid", &uid.to_string(), expected))
        }
        Some(uid) => Ok(uid.value),
        None => Ok(own.as_raw()),
    }
}

/// Checks that dom0 has a bridge of this name.
///
/// # Errors
/// [`Error::Input`] with the names of dom0's bridges if it has not.
pub fn check_bridge(machine: &mut Machine, origin: &Origin, bridge: &str) -> Result<()> {
    let bridges = machine.bridges()?;
    if bridges.iter().any(|name| name == bridge) {
        return Ok(());
    }
    let expected = match bridges.is_empty() {
        true => "no vif at all, as dom0 has no bridge".to_owned(),
        false => format!("a bridge of dom0: {}", bridges.join(", ")),
    };
    Err(origin.invalid("vif: bridge", bridge, expected))
}

/// Creates a domain of this name, as which processes of user `uid` may join, and writes its nodes.
///
/// Under the lock a domain without a process is either being created by a running process, or what remains of a guest
/// whose process died: that one is removed, and its name reused.
fn create_domain(machine: &mut Machine, name: &str, uid: u32) -> Result<DomId> {
    let _lock = lock(&machine.dir)?;
    if let Some(other) = machine.domains()?.into_iter().find(|d| d.name == name) {
        if is_alive(machine, other.domid)? {
            return Err(Error::Other(format!("the name {name:?} is taken by domain {}", other.domid)));
        }
        // If dom0 still has an image, the disk of the new guest that uses it says so.
        let _unreleased = remove_domain(machine, other.domid)?;
        remove_directory(machine, name)?;
    }
    let domid = machine.control.create(name, uid, None)?;
    let uuid = uuid(rand::random());
    let written = domain::add(&mut machine.store, domid, name, &uuid)
        .and_then(|()| Ok(machine.store.write(&creator_path(domid), std::process::id().to_string())?));
    if written.is_err() {
        machine.control.destroy(domid)?;
    }
    written.map(|()| domid)
}

/// Takes the lock on guests' names: while it is held, no other process creates a guest or removes its directory.
pub fn lock(dir: &Dir) -> Result<Flock<File>> {
    let path = dir.path().join("create.lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|e| Error::file(&path, "opening the lock", e))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| Error::file(&path, "locking", e))
}

fn creator_path(domid: DomId) -> String {
    format!("/libxl/{domid}/creator")
}

/// How long a process that was just killed may take to exit.
const KILL_TIMEOUT: Duration = Duration::from_millis(200);

/// Whether the domain's process, or the process that is creating it, runs and is not exiting.
fn is_alive(machine: &mut Machine, domid: DomId) -> Result<bool> {
    let runs = |pid: u32| !process::is_exiting(pid) && !process::exits_within(pid, KILL_TIMEOUT);
    if machine.store.read_opt_as(&creator_path(domid))?.is_some_and(runs) {
        return Ok(true);
    }
    // Only now: a creator that has finished, even since it was found, has started the domain's process.
    Ok(machine.domains()?.iter().any(|domain| domain.domid == domid && domain.pid.is_some_and(runs)))
}

/// Writes the devices' nodes, starts the guest's process and waits until the devices are connected.
fn start_devices(
    machine: &mut Machine,
    config: &GuestConfig,
    options: &CreateOptions<'_>,
    domid: DomId,
    mut check: impl FnMut() -> Result<()>,
) -> Result<ChildProcess> {
    let mut attached = Vec::new();
    for new in devices(domid, config) {
        attached.push(attached::add(&mut machine.store, &new)?);
    }
    dir::make(&machine.dir.guest(&config.name))?;
    let mut process = (options.start)(machine)?;
    let log = machine.dir.log(&config.name);
    let mut check = || match process.exit_status()? {
        Some(status) => Err(exit_error(&config.name, &status, &log)),
        None => check(),
    };
    progress::wait_connected(&mut machine.store, &machine.dir, &attached, options.timeout, &mut check)?;
    // One without devices may not have joined yet, and nobody else is to take it for dead.
    let deadline = Instant::now() + options.timeout;
    while !machine.domains()?.iter().any(|domain| domain.domid == domid && domain.pid.is_some()) {
        check()?;
        if Instant::now() >= deadline {
            return Err(Error::Other(format!("the process of {} has not started", config.name)));
        }
        std::thread::park_timeout(domain::POLL_INTERVAL);
    }
    machine.store.rm(&creator_path(domid))?;
    Ok(process)
}

/// Returns the error that the guest's process exited, with the last line of its log.
fn exit_error(name: &str, status: &str, log: &Path) -> Error {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().next_back().unwrap_or_default();
    let last = last.strip_prefix("xpv: ").unwrap_or(last);
    let colon = if last.is_empty() { "" } else { ": " };
    Error::Other(format!("the process of {name} exited ({status}){colon}{last}"))
}

fn devices(domid: DomId, config: &GuestConfig) -> Vec<NewDevice> {
    let disks = config.disks.iter().map(|disk| vbd::nodes(domid, disk));
    let vifs = config.vifs.iter().enumerate().map(|(index, vif)| {
        let mac = vif.mac.unwrap_or_else(|| Mac::xen(rand::random()));
        vif::nodes(domid, vif, vif.devid.unwrap_or(index as u32), mac)
    });
    disks.chain(vifs).collect()
}

/// Destroys a guest: kills its process, and removes its domain, its nodes and its directory. Returns the devices whose image
/// or interface dom0 has not released.
///
/// # Errors
/// The first error; the remaining steps are tried all the same.
pub fn remove(machine: &mut Machine, domid: DomId, name: &str) -> Result<Vec<Attached>> {
    let unreleased = remove_domain(machine, domid);
    let _lock = lock(&machine.dir)?;
    // Since the domain was removed, another one may have got the name.
    let is_taken = machine.domains()?.iter().any(|domain| domain.name == name);
    let emptied = if is_taken { Ok(()) } else { remove_directory(machine, name) };
    unreleased.and_then(|unreleased| emptied.map(|()| unreleased))
}

fn remove_domain(machine: &mut Machine, domid: DomId) -> Result<Vec<Attached>> {
    let killed = match machine.control.process(domid) {
        Err(hypervisor::Error::NoSuchDomain(_)) => Ok(()),
        found => found.map_err(Error::from).and_then(process::kill_process),
    };
    let destroyed = match machine.control.destroy(domid) {
        // `xpv hypervisor` removes a guest whose process exited, and was first.
        Err(hypervisor::Error::NoSuchDomain(_)) => Ok(()),
        done => done.map_err(Error::from),
    };
    let dom0_runs = machine.require_dom0().is_ok();
    let removed = domain::remove(&mut machine.store, domid, dom0_runs);
    killed.and(destroyed).and(removed)
}

/// Removes the directory of a guest's name. The caller has the lock.
fn remove_directory(machine: &Machine, name: &str) -> Result<()> {
    let directory = machine.dir.guest(name);
    match std::fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file(directory, "removing the guest's directory", e))
        }
        _ => Ok(()),
    }
}

/// Formats a random UUID (RFC 9562, version 4).
fn uuid(random: [u8; 16]) -> String {
    let mut bytes = random;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::local::{Control, Domain, Sandbox};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use testkit::HookedStream;
    use xenstore::Client;
    use xenstore::server::{Config, Store};

    #[test]
    fn domain_whose_creator_finishes_while_it_is_looked_at_is_alive() {
        let sandbox = Sandbox::new().unwrap();
        let store = Store::spawn(Config::default()).unwrap();
        let control = Control::connect(sandbox.dir()).unwrap();
        let domid = control.create("web", Uid::effective().as_raw(), None).unwrap();
        let mut creator = Command::new("true").spawn().unwrap();
        creator.wait().unwrap();
        store.client().unwrap().write(&creator_path(domid), creator.id().to_string()).unwrap();
        let (stream, other) = UnixStream::pair().unwrap();
        store.handle().connect(other).unwrap();
        let dir = sandbox.dir().to_owned();
        let mut process = None;
        // The domain's process starts, and its creator has exited, just before the creator is read.
        let hooked = HookedStream::new(Box::new(stream), move || {
            if process.is_none() {
                process = Some(Domain::join(&dir, domid).unwrap());
            }
        });
        let dir = Dir::choose(Some(sandbox.dir())).unwrap();
        let mut machine = Machine { dir, store: Client::new(hooked), control };
        assert!(is_alive(&mut machine, domid).unwrap());
        // Its process exits.
        machine.store = store.client().unwrap();
        assert!(!is_alive(&mut machine, domid).unwrap(), "both have exited");
    }

    #[test]
    fn other_users_guests_are_for_root_alone_to_start() {
        let config = |text: &str| GuestConfig::parse(&Origin::file(Path::new("g.cfg")), text, &[]).unwrap();
        let [other, none] = ["name='a'\nuid=1001", "name='a'"].map(config);
        let of = |config: &GuestConfig, own| user(config, Uid::from_raw(own)).map_err(|e| e.to_string());
        assert_eq!((of(&other, 0), of(&other, 1001), of(&none, 1000)), (Ok(1001), Ok(1001), Ok(1000)));
        let error = of(&other, 1000).unwrap_err();
        assert!(error.starts_with("g.cfg:2: uid: found \"1001\", expected 1000, as only root"), "{error}");
    }

    #[test]
    fn uuid_has_version_4_and_the_rfc_variant() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
