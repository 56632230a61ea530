//! `xpv up`: a whole machine, kept running.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

use crate::config::GuestConfig;
use crate::config::host::{GuestEntry, HostConfig};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::guest::{self, How, create};
use crate::machine::process::{self, Owned};
use crate::machine::{Machine, host};

/// Run a machine as host.toml describes it, and keep it running
///
/// Starts the hypervisor, dom0 and the guests, and dom0 again when it dies: guests' frontends reconnect, and ask
/// again what was not answered. Ends with SIGTERM or SIGINT, and with it the machine. Further guests can be
/// created, and devices attached, meanwhile.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine's description
    host: PathBuf,
}

/// How long a guest's devices may take to connect.
const CONNECT: Duration = Duration::from_secs(20);
/// How long a process may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// A process that lived shorter is started again only after so long.
const PACE: Duration = Duration::from_millis(200);

/// Runs it until told to end.
///
/// # Errors
/// The description is wrong, something cannot be started, or the hypervisor ended.
pub fn run(args: &Args, asked: Option<&Path>) -> Result<()> {
    let config = HostConfig::read(&args.host)?;
    let dir = Dir::choose(asked.or(config.dir.as_deref()))?;
    let guests = read_guests(&config)?;
    let stop = process::stop_signal()?;
    dir.make()?;
    let hypervisor = host::start_hypervisor(&dir, None)?;
    let mut up = Up { dir, config, hypervisor, dom0: None, dom0_since: Instant::now(), guests };
    let outcome = up.start().and_then(|mut machine| up.supervise(&mut machine, &stop));
    up.down();
    outcome
}

/// A guest of the file.
struct Guest {
    entry: GuestEntry,
    config: GuestConfig,
    process: Option<Owned>,
    since: Instant,
}

/// What runs.
struct Up {
    dir: Dir,
    config: HostConfig,
    hypervisor: Owned,
    dom0: Option<Owned>,
    dom0_since: Instant,
    guests: Vec<Guest>,
}

/// Reads all guests before anything is started; names and bridges must agree.
fn read_guests(config: &HostConfig) -> Result<Vec<Guest>> {
    let mut guests: Vec<Guest> = Vec::new();
    for entry in &config.guests {
        let origin = Origin::file(&entry.cfg);
        let config_of_guest = GuestConfig::read(&entry.cfg)?;
        config_of_guest.warnings.show();
        if guests.iter().any(|g| g.config.name == config_of_guest.name) {
            return Err(origin.wrong("name", &config_of_guest.name, "a name that no other guest has"));
        }
        for vif in &config_of_guest.vifs {
            if !config.bridges.iter().any(|b| b.name == vif.bridge) {
                return Err(origin.wrong("vif: bridge", &vif.bridge, "a bridge of the host's description"));
            }
        }
        let since = Instant::now();
        guests.push(Guest { entry: entry.clone(), config: config_of_guest, process: None, since });
    }
    Ok(guests)
}

impl Up {
    /// Starts dom0 and the guests.
    fn start(&mut self) -> Result<Machine> {
        self.dom0 = Some(host::start_dom0(&self.dir, &self.config.bridges, None)?);
        let mut machine = Machine::connect(&self.dir)?;
        for index in 0..self.guests.len() {
            self.start_guest(&mut machine, index)?;
        }
        tracing::info!(dir = %self.dir.path().display(), guests = self.guests.len(), "up");
        process::say_ready();
        Ok(machine)
    }

    fn start_guest(&mut self, machine: &mut Machine, index: usize) -> Result<()> {
        let Guest { entry, config, .. } = &self.guests[index];
        let origin = Origin::file(&entry.cfg);
        let start = |machine: &Machine| guest::start(machine, &config.name, entry.netns.as_deref(), true);
        let how = How { origin: &origin, start: &start, bound: CONNECT };
        let (domid, process) = create(machine, config, &how, || Ok(()))?;
        tracing::info!(%domid, name = config.name, "created");
        self.guests[index].process = Some(process);
        self.guests[index].since = Instant::now();
        Ok(())
    }

    /// Starts again what ends, until told to stop.
    fn supervise(&mut self, machine: &mut Machine, stop: &impl AsFd) -> Result<()> {
        loop {
            if let Some(status) = self.hypervisor.ended()? {
                return Err(Error::Other(format!("the hypervisor ended: {status}")));
            }
            let mut next = self.look_at_dom0()?;
            for index in 0..self.guests.len() {
                next = earliest(next, self.look_at_guest(machine, index)?);
            }
            if self.sleep(stop, next)? {
                return Ok(());
            }
        }
    }

    /// Starts dom0 again if it has ended; when to look again, if that is to wait.
    fn look_at_dom0(&mut self) -> Result<Option<Instant>> {
        let Some(status) = self.dom0.as_mut().map_or(Ok(None), Owned::ended)? else { return Ok(None) };
        if !self.config.supervise.dom0 {
            return Err(Error::Other(format!("dom0 ended: {status}")));
        }
        let due = self.dom0_since + PACE;
        if Instant::now() < due {
            return Ok(Some(due));
        }
        tracing::warn!(status, "dom0 ended; starting it again");
        self.dom0_since = Instant::now();
        match host::start_dom0(&self.dir, &self.config.bridges, None) {
            Ok(dom0) => {
                self.dom0 = Some(dom0);
                Ok(None)
            }
            Err(error) => {
                tracing::error!(%error, "dom0 cannot be started");
                Ok(Some(self.dom0_since + PACE))
            }
        }
    }

    fn look_at_guest(&mut self, machine: &mut Machine, index: usize) -> Result<Option<Instant>> {
        let guest = &mut self.guests[index];
        if let Some(status) = guest.process.as_mut().map_or(Ok(None), Owned::ended)? {
            tracing::warn!(name = guest.config.name, status, "a guest ended");
            guest.process = None;
        }
        if guest.process.is_some() || !self.config.supervise.guests {
            return Ok(None);
        }
        let due = guest.since + PACE;
        if Instant::now() < due {
            return Ok(Some(due));
        }
        guest.since = Instant::now();
        match self.start_guest(machine, index) {
            Ok(()) => Ok(None),
            Err(error) => {
                tracing::error!(name = self.guests[index].config.name, %error, "a guest cannot be created");
                Ok(Some(Instant::now() + PACE))
            }
        }
    }

    /// Until a process ends or the time has come; `true` when told to stop.
    fn sleep(&self, stop: &impl AsFd, until: Option<Instant>) -> Result<bool> {
        let guests = self.guests.iter().filter_map(|g| g.process.as_ref());
        let ends = [Some(&self.hypervisor), self.dom0.as_ref()].into_iter().flatten();
        let ends = ends.chain(guests).map(Owned::pidfd);
        // One that has ended is waited for by the clock, not by its descriptor, which stays readable.
        let ends: Vec<_> = ends.flatten().filter(|_| until.is_none()).collect();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![stop.as_fd()];
        fds.extend(ends.iter().map(AsFd::as_fd));
        process::wait_first(&fds, timeout)
    }

    /// Ends all: guests first, so that they can close their devices.
    fn down(self) {
        let mut guests: Vec<Owned> = self.guests.into_iter().filter_map(|g| g.process).collect();
        guests.iter_mut().for_each(Owned::ask_to_end);
        guests.into_iter().for_each(|g| g.end(GRACE));
        self.dom0.into_iter().for_each(|dom0| dom0.end(GRACE));
        self.hypervisor.end(GRACE);
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}
