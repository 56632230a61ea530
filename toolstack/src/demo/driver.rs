//! Runs the demo: starts the machine and its guests, sends them commands, and verifies their results.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::display::ProgressDisplay;
use super::image::{Image, Tools};
use super::peer::{self, Peer};
use super::protocol::{DiskPlan, DiskResult, Event, GuestCommand, NetPlan, NetResult, Served, Stream};
use super::report::{GuestReport, Report};
use crate::config::host::HostConfig;
use crate::config::{GuestConfig, Warnings};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result, chain};
use crate::machine::guest::{CreateOptions, create};
use crate::machine::process::{self, ChildProcess};
use crate::machine::{Machine, host};

/// The guests' names, and the last bytes of their MAC addresses.
const GUESTS: [(&str, u8); 2] = [("alice", 0x0a), ("bob", 0x0b)];
/// How long the guests may send no event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process may take to exit.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Parameters of the demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// The size of each guest's file in bytes, a multiple of 4096.
    pub bytes: u64,
    /// How long each workload runs.
    pub time: Duration,
    /// The number of pings that each guest sends.
    pub pings: u64,
    /// The directory for the machine and its images, which is kept; a temporary one if `None`.
    pub directory: Option<PathBuf>,
    /// Whether to show no progress.
    pub quiet: bool,
}

/// Runs the demo.
///
/// # Errors
/// A step could not be performed. Wrong data is not an error: it is in the report.
pub fn run(options: &Options) -> Result<Report> {
    let started = Instant::now();
    let tools = Tools::find()?;
    let interrupted = process::interrupt_flag()?;
    let directory = Directory::new(options.directory.as_deref())?;
    let progress = ProgressDisplay::new(&GUESTS.map(|(name, _)| name), options.quiet);
    progress.step("making disk images with ext4 in them");
    let images = make_images(&tools, directory.path(), options.bytes)?;
    progress.step("starting store, broker and dom0");
    let dir = Dir::choose(Some(&directory.path().join("run")))?;
    dir.make()?;
    let log = |name: &str| Some(directory.path().join(format!("{name}.log")));
    let hypervisor = host::start_hypervisor(&dir, log("hypervisor"))?;
    let dom0 = host::start_dom0(&dir, &HostConfig::parse(&Origin::argument("demo"), "")?, log("dom0"))?;
    let mut driver = Driver::new(&dir, &images, progress, interrupted)?;
    let outcome = driver.run(options, &images);
    let closed = driver.close();
    dom0.stop(STOP_TIMEOUT);
    hypervisor.stop(STOP_TIMEOUT);
    let results = outcome.and_then(|results| closed.map(|()| results));
    let results = results.map_err(|error| with_log(&error, &directory.path().join("dom0.log")))?;
    driver.progress.step("comparing the images with what the guests wrote");
    let report = verify(&tools, &images, results, started)?;
    driver.progress.finish();
    Ok(report)
}

/// The demo's directory, which is removed at the end unless the user gave it.
enum Directory {
    Temporary(tempfile::TempDir),
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
                let temporary = tempfile::Builder::new().prefix("xpv-demo-").tempdir();
                temporary.map(Directory::Temporary).map_err(|e| Error::io("making a directory", e))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Directory::Temporary(dir) => dir.path(),
            Directory::Given(path) => path,
        }
    }
}

fn make_images(tools: &Tools, directory: &Path, bytes: u64) -> Result<Vec<Image>> {
    let make = |(name, _): (&str, u8)| Image::make(tools, &directory.join(format!("{name}.img")), bytes);
    GUESTS.into_iter().map(make).collect()
}

/// Adds the last line of dom0's log to an error.
fn with_log(error: &Error, log: &Path) -> Error {
    let error = chain(error);
    let text = std::fs::read_to_string(log).unwrap_or_default();
    match text.lines().next_back() {
        Some(last) => Error::Other(format!("{error} (last line of dom0's log: {last})")),
        None => Error::Other(error.to_string()),
    }
}

/// What one guest has reported.
#[derive(Debug, Default)]
struct Results {
    mac: Option<[u8; 6]>,
    disk: Option<DiskResult>,
    net: Option<NetResult>,
    served: Option<Served>,
    flipped: Option<Stream>,
    flipped_served: Option<Served>,
}

/// Drives the guests by commands, and collects their results.
struct Driver {
    peers: Vec<Peer>,
    events: Receiver<(usize, Option<Event>)>,
    results: Vec<Results>,
    progress: ProgressDisplay,
    interrupted: Arc<AtomicBool>,
}

impl Driver {
    fn new(
        dir: &Dir,
        images: &[Image],
        progress: ProgressDisplay,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Driver> {
        let mut machine = Machine::connect(dir)?;
        let (sender, events) = channel();
        let mut peers = Vec::new();
        for (index, ((name, last), image)) in GUESTS.into_iter().zip(images).enumerate() {
            progress.step(&format!("creating guest {name} with a vbd and a vif"));
            let process = start_guest(&mut machine, name, last, image, &interrupted)?;
            peers.push(Peer::new(name, process, index, Sender::clone(&sender))?);
        }
        let results = peers.iter().map(|_| Results::default()).collect();
        Ok(Driver { peers, events, results, progress, interrupted })
    }

    fn run(&mut self, options: &Options, images: &[Image]) -> Result<Vec<Results>> {
        self.wait_until("their devices", |results| results.iter().all(|r| r.mac.is_some()))?;
        self.progress.step("both guests write, flush, read back and verify their disks");
        let millis = options.time.as_millis() as u64;
        for (seed, (peer, image)) in self.peers.iter_mut().zip(images).enumerate() {
            let plan = DiskPlan { seed: seed as u64 + 1, extents: image.extents.clone(), millis };
            peer.send(&GuestCommand::Disk(plan))?;
        }
        self.wait_until("their disks", |results| results.iter().all(|r| r.disk.is_some()))?;
        for (from, to) in [(0, 1), (1, 0)] {
            let sender = &self.peers[from].name;
            let receiver = &self.peers[to].name;
            self.progress.step(&format!("{sender} streams to {receiver} across the bridge, and pings"));
            let seed = 100 + from as u64;
            let address = self.results[to].mac.unwrap_or_default();
            self.peers[to].send(&GuestCommand::Serve(seed))?;
            let plan = NetPlan { to: address, seed, millis, pings: options.pings };
            self.peers[from].send(&GuestCommand::Drive(plan))?;
            self.wait_until("the network", |results| {
                results[from].net.is_some() && results[to].served.is_some()
            })?;
            self.stream_flipped(from, to, millis)?;
        }
        Ok(std::mem::take(&mut self.results))
    }

    /// Streams large frames from one guest to the other, whose interface receives in flipped pages meanwhile.
    fn stream_flipped(&mut self, from: usize, to: usize, millis: u64) -> Result<()> {
        let sender = &self.peers[from].name;
        let receiver = &self.peers[to].name;
        self.progress.step(&format!("{sender} streams to {receiver}, whose pages are flipped"));
        self.reopen(to, true)?;
        let seed = 200 + from as u64;
        let plan = NetPlan { to: self.results[to].mac.unwrap_or_default(), seed, millis, pings: 0 };
        self.peers[to].send(&GuestCommand::Serve(seed))?;
        self.peers[from].send(&GuestCommand::Stream(plan))?;
        self.wait_until("the network", |results| {
            results[from].flipped.is_some() && results[to].flipped_served.is_some()
        })?;
        self.reopen(to, false)
    }

    fn reopen(&mut self, guest: usize, flip: bool) -> Result<()> {
        self.results[guest].mac = None;
        self.peers[guest].send(&GuestCommand::Reopen { flip })?;
        self.wait_until("its interface", |results| results[guest].mac.is_some())
    }

    /// Handles events until `done`; `what` says in the error what was awaited.
    fn wait_until(&mut self, what: &str, done: impl Fn(&[Results]) -> bool) -> Result<()> {
        const SLICE: Duration = Duration::from_millis(200);
        let mut deadline = Instant::now() + EVENT_TIMEOUT;
        while !done(&self.results) {
            process::check_interrupted(&self.interrupted)?;
            match self.events.recv_timeout(SLICE) {
                Ok((guest, event)) => {
                    deadline = Instant::now() + EVENT_TIMEOUT;
                    self.handle(guest, event)?;
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => {
                    let seconds = EVENT_TIMEOUT.as_secs();
                    return Err(Error::Other(format!(
                        "the guests sent no event about {what} for {seconds} s"
                    )));
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, guest: usize, event: Option<Event>) -> Result<()> {
        let results = &mut self.results[guest];
        let name = &self.peers[guest].name;
        match event {
            None => return Err(Error::Other(format!("{name} exited"))),
            Some(Event::Failed(error)) => return Err(Error::Other(format!("{name}: {error}"))),
            Some(Event::Progress(progress)) => self.progress.update(guest, &progress),
            Some(Event::Ready(mac)) => results.mac = Some(mac),
            Some(Event::Disk(result)) => results.disk = Some(result),
            Some(Event::Served(served)) if results.served.is_none() => results.served = Some(served),
            Some(Event::Served(served)) => results.flipped_served = Some(served),
            Some(Event::Streamed(stream)) => results.flipped = Some(stream),
            Some(Event::Driven(result)) => results.net = Some(result),
        }
        Ok(())
    }

    /// Has the guests close their devices and exit.
    fn close(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for mut peer in std::mem::take(&mut self.peers) {
            let quit = peer.send(&GuestCommand::Quit);
            if quit.is_ok() && !peer.process.wait(STOP_TIMEOUT) {
                outcome = Err(Error::Other(format!("{} does not exit", peer.name)));
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
) -> Result<ChildProcess> {
    // The same text as in a file.
    let cfg = format!(
        "name = '{name}'\ndisk = [ 'vdev=xvda,access=rw,target={}' ]\nvif = [ 'mac=00:16:3e:00:00:{last:02x}' ]\n",
        image.path.display()
    );
    let origin = Origin::argument(name);
    let config = GuestConfig::parse(&origin, &cfg, &[])?;
    debug_assert_eq!(config.warnings, Warnings::default());
    let start = |machine: &Machine| peer::start(machine, name);
    let options = CreateOptions { origin: &origin, start: &start, timeout: Duration::from_secs(20) };
    create(machine, &config, &options, || process::check_interrupted(interrupted)).map(|(_, process)| process)
}

/// Compares the guests' results with each other and with the images.
fn verify(tools: &Tools, images: &[Image], results: Vec<Results>, started: Instant) -> Result<Report> {
    let served: Vec<Option<Served>> = results.iter().map(|result| result.served.clone()).collect();
    let flipped_served: Vec<Option<Served>> =
        results.iter().map(|result| result.flipped_served.clone()).collect();
    let mut guests = Vec::new();
    for (index, (result, image)) in results.into_iter().zip(images).enumerate() {
        let missing = || Error::other("a guest did not report all its results");
        guests.push(GuestReport {
            name: GUESTS[index].0.into(),
            disk: result.disk.ok_or_else(missing)?,
            image_sha256: image.sha256(tools)?,
            filesystem_clean: image.fsck_errors(tools)?.is_none(),
            net: result.net.ok_or_else(missing)?,
            peer: served[1 - index].clone().ok_or_else(missing)?,
            flipped: result.flipped.ok_or_else(missing)?,
            flipped_peer: flipped_served[1 - index].clone().ok_or_else(missing)?,
        });
    }
    Ok(Report::new(guests, started.elapsed().as_secs_f64()))
}
