//! The demo from start to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::image::{Image, Tools};
use super::peer::{self, Peer};
use super::report::{GuestReport, Report};
use super::show::Show;
use super::words::{DiskPlan, DiskResult, Event, NetPlan, NetResult, Order, Served};
use crate::config::host::HostConfig;
use crate::config::{GuestConfig, Warnings};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::guest::{How, create};
use crate::machine::process::{self, Owned};
use crate::machine::{Machine, host};

/// The guests' names, and the last bytes of their addresses.
const GUESTS: [(&str, u8); 2] = [("alice", 0x0a), ("bob", 0x0b)];
/// How long a guest may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// How much is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of each guest's file, a multiple of 4096.
    pub bytes: u64,
    /// How long each load runs.
    pub time: Duration,
    /// How many pings each guest sends.
    pub pings: u64,
    /// Where the machine and its images are; they are left there. A directory of their own, removed, when `None`.
    pub directory: Option<PathBuf>,
    /// Nothing is shown before the end.
    pub quiet: bool,
}

/// Runs the demo.
///
/// # Errors
/// Something could not be done at all. What was done and is wrong is in the report.
pub fn run(options: &Options) -> Result<Report> {
    let begun = Instant::now();
    let tools = Tools::find()?;
    let interrupted = process::interrupted()?;
    let directory = Directory::new(options.directory.as_deref())?;
    let show = Show::new(&GUESTS.map(|(name, _)| name), options.quiet);
    show.step("making disk images with ext4 in them");
    let images = make_images(&tools, directory.path(), options.bytes)?;
    show.step("starting store, broker and dom0");
    let dir = Dir::choose(Some(&directory.path().join("run")))?;
    dir.make()?;
    let log = |name: &str| Some(directory.path().join(format!("{name}.log")));
    let hypervisor = host::start_hypervisor(&dir, log("hypervisor"))?;
    let dom0 =
        host::start_dom0(&dir, &HostConfig::parse(&Origin::argument("demo"), "")?.bridges, log("dom0"))?;
    let mut stage = Stage::set(&dir, &images, show, interrupted)?;
    let outcome = stage.play(options, &images);
    let closed = stage.close();
    dom0.end(GRACE);
    hypervisor.end(GRACE);
    let acts = outcome.and_then(|acts| closed.map(|()| acts));
    let acts = acts.map_err(|error| with_log(error, &directory.path().join("dom0.log")))?;
    stage.show.step("comparing the images with what the guests wrote");
    let report = judge(&tools, &images, acts, begun)?;
    stage.show.end();
    Ok(report)
}

/// A directory that goes with the demo, unless it is the user's.
enum Directory {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Directory {
    fn new(given: Option<&Path>) -> Result<Directory> {
        match given {
            Some(path) => {
                std::fs::create_dir(path).map_err(|e| Error::file(path, "making the directory", e))?;
                Ok(Directory::Given(path.to_owned()))
            }
            None => {
                let own = tempfile::Builder::new().prefix("xpv-demo-").tempdir();
                own.map(Directory::Own).map_err(|e| Error::io("making a directory", e))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Directory::Own(dir) => dir.path(),
            Directory::Given(path) => path,
        }
    }
}

fn make_images(tools: &Tools, directory: &Path, bytes: u64) -> Result<Vec<Image>> {
    let make = |(name, _): (&str, u8)| Image::make(tools, &directory.join(format!("{name}.img")), bytes);
    GUESTS.into_iter().map(make).collect()
}

/// What dom0 said last stands beside an error.
fn with_log(error: Error, log: &Path) -> Error {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    match said.lines().next_back() {
        Some(last) => Error::Other(format!("{error} (dom0 said last: {last})")),
        None => error,
    }
}

/// One guest's part.
#[derive(Debug, Default)]
struct Act {
    mac: Option<[u8; 6]>,
    disk: Option<DiskResult>,
    net: Option<NetResult>,
    served: Option<Served>,
}

/// The guests, and what they say.
struct Stage {
    peers: Vec<Peer>,
    events: Receiver<(usize, Option<Event>)>,
    acts: Vec<Act>,
    show: Show,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    fn set(dir: &Dir, images: &[Image], show: Show, interrupted: Arc<AtomicBool>) -> Result<Stage> {
        let mut machine = Machine::connect(dir)?;
        let (sender, events) = channel();
        let mut peers = Vec::new();
        for (index, ((name, last), image)) in GUESTS.into_iter().zip(images).enumerate() {
            show.step(&format!("creating guest {name} with a vbd and a vif"));
            let process = start_guest(&mut machine, name, last, image, &interrupted)?;
            peers.push(Peer::new(name, process, index, Sender::clone(&sender))?);
        }
        let acts = peers.iter().map(|_| Act::default()).collect();
        Ok(Stage { peers, events, acts, show, interrupted })
    }

    fn play(&mut self, options: &Options, images: &[Image]) -> Result<Vec<Act>> {
        self.until("their devices", |acts| acts.iter().all(|a| a.mac.is_some()))?;
        self.show.step("both guests write, flush, read back and verify their disks");
        let millis = options.time.as_millis() as u64;
        for (seed, (peer, image)) in self.peers.iter_mut().zip(images).enumerate() {
            let plan = DiskPlan { seed: seed as u64 + 1, runs: image.runs.clone(), millis };
            peer.order(&Order::Disk(plan))?;
        }
        self.until("their disks", |acts| acts.iter().all(|a| a.disk.is_some()))?;
        for (from, to) in [(0, 1), (1, 0)] {
            let (sender, receiver) = (&self.peers[from].name, &self.peers[to].name);
            self.show.step(&format!("{sender} streams to {receiver} across the bridge, and pings"));
            let seed = 100 + from as u64;
            let address = self.acts[to].mac.unwrap_or_default();
            self.peers[to].order(&Order::Serve(seed))?;
            let plan = NetPlan { to: address, seed, millis, pings: options.pings };
            self.peers[from].order(&Order::Drive(plan))?;
            self.until("the network", |acts| acts[from].net.is_some() && acts[to].served.is_some())?;
        }
        Ok(std::mem::take(&mut self.acts))
    }

    /// Takes events until something is so.
    fn until(&mut self, what: &str, done: impl Fn(&[Act]) -> bool) -> Result<()> {
        const SLICE: Duration = Duration::from_millis(200);
        let mut deadline = Instant::now() + PATIENCE;
        while !done(&self.acts) {
            process::go_on(&self.interrupted)?;
            match self.events.recv_timeout(SLICE) {
                Ok((guest, event)) => {
                    deadline = Instant::now() + PATIENCE;
                    self.take(guest, event)?;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => {
                    let seconds = PATIENCE.as_secs();
                    return Err(Error::Other(format!("the guests are silent on {what} for {seconds} s")));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, guest: usize, event: Option<Event>) -> Result<()> {
        let act = &mut self.acts[guest];
        let name = &self.peers[guest].name;
        match event {
            None => return Err(Error::Other(format!("{name} ended"))),
            Some(Event::Failed(why)) => return Err(Error::Other(format!("{name}: {why}"))),
            Some(Event::Progress(progress)) => self.show.progress(guest, &progress),
            Some(Event::Ready(mac)) => act.mac = Some(mac),
            Some(Event::Disk(result)) => act.disk = Some(result),
            Some(Event::Served(served)) => act.served = Some(served),
            Some(Event::Driven(result)) => act.net = Some(result),
        }
        Ok(())
    }

    /// Has the guests close their devices and end.
    fn close(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for mut peer in std::mem::take(&mut self.peers) {
            let quit = peer.order(&Order::Quit);
            if quit.is_ok() && !peer.process.wait(GRACE) {
                outcome = Err(Error::Other(format!("{} does not end", peer.name)));
            }
        }
        outcome
    }
}

fn start_guest(
    machine: &mut Machine,
    name: &str,
    last: u8,
    image: &Image,
    interrupted: &AtomicBool,
) -> Result<Owned> {
    // As a file would say it.
    let cfg = format!(
        "name = '{name}'\ndisk = [ 'vdev=xvda,access=rw,target={}' ]\nvif = [ 'mac=00:16:3e:00:00:{last:02x}' ]\n",
        image.path.display()
    );
    let origin = Origin::argument(name);
    let config = GuestConfig::parse(&origin, &cfg)?;
    debug_assert_eq!(config.warnings, Warnings::default());
    let start = |machine: &Machine| peer::start(machine, name);
    let how = How { origin: &origin, start: &start, bound: Duration::from_secs(20) };
    create(machine, &config, &how, || process::go_on(interrupted)).map(|(_, process)| process)
}

/// Compares what the guests say with what is in the images.
fn judge(tools: &Tools, images: &[Image], acts: Vec<Act>, begun: Instant) -> Result<Report> {
    let served: Vec<Option<Served>> = acts.iter().map(|act| act.served.clone()).collect();
    let mut guests = Vec::new();
    for (index, (act, image)) in acts.into_iter().zip(images).enumerate() {
        let missing = || Error::other("a guest has not told everything");
        guests.push(GuestReport {
            name: GUESTS[index].0.into(),
            disk: act.disk.ok_or_else(missing)?,
            image_sha256: image.sha256(tools)?,
            filesystem_clean: image.complaint(tools)?.is_none(),
            net: act.net.ok_or_else(missing)?,
            peer: served[1 - index].clone().ok_or_else(missing)?,
        });
    }
    Ok(Report::new(guests, begun.elapsed().as_secs_f64()))
}
