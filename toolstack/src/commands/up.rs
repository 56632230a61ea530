//! `xpv up`: runs and supervises a machine.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::signal::Signal;

use crate::config::GuestConfig;
use crate::config::host::{GuestEntry, HostConfig};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result, chain};
use crate::machine::guest::{self, CreateOptions, Interfaces, create};
use crate::machine::process::{self, ChildProcess};
use crate::machine::{Machine, host};

/// Run the machine that host.toml describes, and keep it running
///
/// Starts the hypervisor, dom0 and the guests, and restarts dom0 when it dies: guests' frontends reconnect, and submit
/// unanswered requests again. A dom0 that does not start, because its policy was broken meanwhile for instance, is tried again after 0.2 to
/// 5 seconds, and at once on SIGHUP; the guests wait. It restarts the hypervisor too, which goes on with the machine as it was: dom0 and the guests
/// reconnect to it, and their disks and interfaces work meanwhile. Exits on SIGTERM or SIGINT, and with it the machine; SIGHUP
/// is passed on to dom0, which reads its policy again, unless it is that of a terminal that was closed.
/// Further guests can be created, and devices attached, meanwhile.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The description of the machine, host.toml [default: a bridge xenbr0, and no guests]
    host: Option<PathBuf>,
}

/// How long a guest's devices may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a process may take to exit after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time between two starts of a process.
const RESTART_INTERVAL: Duration = Duration::from_millis(200);
/// The longest time between two starts of dom0, each of which fails or ends soon: what it needs may be there again at any time.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// The time for which dom0 has to run, so that it is restarted at once.
const DOM0_RUNS: Duration = Duration::from_secs(5);
/// The time for which a hypervisor has to run, so that its end is the first in a row.
const HYPERVISOR_RUNS: Duration = Duration::from_secs(5);
/// How often in a row the hypervisor is restarted.
const HYPERVISOR_RESTARTS: u32 = 30;

/// Runs the machine until a signal.
///
/// # Errors
/// The description is invalid, a process cannot be started, or the hypervisor exits again and again.
pub fn run(args: &Args, dir: Option<&Path>) -> Result<()> {
    let config = match &args.host {
        Some(path) => HostConfig::read(path)?,
        None => HostConfig::parse(&Origin::argument("HOST"), "")?,
    };
    let dir = Dir::choose(dir.or(config.dir.as_deref()))?;
    let guests = read_guests(&config)?;
    let (stop, hangup) = process::stop_and_hangup_signals()?;
    let had_terminal = has_terminal();
    dir.make()?;
    let hypervisor = host::start_hypervisor(&dir, None)?;
    let started = Instant::now();
    let mut up = Up {
        dir,
        config,
        hypervisor,
        hypervisor_started: started,
        hypervisor_restarts: 0,
        dom0: None,
        dom0_started: started,
        dom0_interval: RESTART_INTERVAL,
        guests,
    };
    let outcome = up
        .start()
        .and_then(|mut machine| up.supervise(&mut machine, &Signals { stop, hangup, had_terminal }));
    up.stop();
    outcome
}

/// A guest of host.toml and its process.
struct Guest {
    entry: GuestEntry,
    config: GuestConfig,
    process: Option<ChildProcess>,
    started: Instant,
}

/// The signals that this process handles.
struct Signals {
    /// Readable on one that ends it.
    stop: UnixStream,
    /// Readable on SIGHUP.
    hangup: UnixStream,
    /// It was started in a terminal, whose end is a SIGHUP that ends it.
    had_terminal: bool,
}

/// Whether this process has a terminal.
fn has_terminal() -> bool {
    std::io::stdin().is_terminal() || std::io::stderr().is_terminal()
}

/// The machine's processes.
struct Up {
    dir: Dir,
    config: HostConfig,
    hypervisor: ChildProcess,
    hypervisor_started: Instant,
    /// How often in a row it was restarted.
    hypervisor_restarts: u32,
    /// None before it is started, and while it is to be started again.
    dom0: Option<ChildProcess>,
    dom0_started: Instant,
    /// The shortest time until it is started again.
    dom0_interval: Duration,
    guests: Vec<Guest>,
}

/// Reads the guests' configurations, whose names must differ, and whose bridges must exist.
fn read_guests(config: &HostConfig) -> Result<Vec<Guest>> {
    let mut guests: Vec<Guest> = Vec::new();
    for entry in &config.guests {
        let origin = Origin::file(&entry.cfg);
        let config_of_guest = GuestConfig::read(&entry.cfg, &[])?;
        config_of_guest.warnings.show();
        if guests.iter().any(|g| g.config.name == config_of_guest.name) {
            return Err(origin.invalid("name", &config_of_guest.name, "a name that no other guest has"));
        }
        for vif in &config_of_guest.vifs {
            if !config.bridges.iter().any(|b| b.name == vif.bridge) {
                return Err(origin.invalid("vif: bridge", &vif.bridge, "a bridge of the host's description"));
            }
        }
        let started = Instant::now();
        guests.push(Guest { entry: entry.clone(), config: config_of_guest, process: None, started });
    }
    Ok(guests)
}

impl Up {
    /// Starts dom0 and the guests.
    fn start(&mut self) -> Result<Machine> {
        self.dom0 = Some(host::start_dom0(&self.dir, &self.config, None)?);
        let mut machine = Machine::connect(&self.dir)?;
        for index in 0..self.guests.len() {
            self.start_guest(&mut machine, index)?;
        }
        tracing::info!(dir = %self.dir.path().display(), guests = self.guests.len(), "ready");
        process::report_ready();
        Ok(machine)
    }

    fn start_guest(&mut self, machine: &mut Machine, index: usize) -> Result<()> {
        let Guest { entry, config, .. } = &self.guests[index];
        let origin = Origin::file(&entry.cfg);
        let interfaces = Interfaces { netns: entry.netns.as_deref(), rx: entry.rx };
        let start = |machine: &Machine| guest::start(machine, &config.name, interfaces, true);
        let options = CreateOptions { origin: &origin, start: &start, timeout: CONNECT_TIMEOUT };
        let (domid, process) = create(machine, config, &options, || Ok(()))?;
        tracing::info!(%domid, name = config.name, "created");
        self.guests[index].process = Some(process);
        self.guests[index].started = Instant::now();
        Ok(())
    }

    /// Restarts processes that exit, until a signal.
    fn supervise(&mut self, machine: &mut Machine, signals: &Signals) -> Result<()> {
        loop {
            let mut next = self.check_hypervisor(machine)?;
            // The pidfd of one that has exited is readable all the time: nothing but the time is awaited until it runs again.
            let has_hypervisor = next.is_none();
            if has_hypervisor {
                next = self.check_dom0()?;
                for index in 0..self.guests.len() {
                    next = earliest(next, self.check_guest(machine, index)?);
                }
            }
            if self.sleep(signals, next, has_hypervisor)? {
                return Ok(());
            }
        }
    }

    /// Restarts the hypervisor if it has exited, so that its members reconnect. Returns when to check again if the restart is
    /// delayed: nothing else can be done meanwhile.
    fn check_hypervisor(&mut self, machine: &mut Machine) -> Result<Option<Instant>> {
        let Some(status) = self.hypervisor.exit_status()? else { return Ok(None) };
        let due = self.hypervisor_started + RESTART_INTERVAL;
        if Instant::now() < due {
            return Ok(Some(due));
        }
        if self.hypervisor_started.elapsed() >= HYPERVISOR_RUNS {
            self.hypervisor_restarts = 0;
        }
        if self.hypervisor_restarts == HYPERVISOR_RESTARTS {
            return Err(Error::Other(format!(
                "the hypervisor exited: {status}; it was restarted {HYPERVISOR_RESTARTS} times in a row"
            )));
        }
        tracing::warn!(status, "the hypervisor exited; restarting it");
        self.hypervisor_restarts += 1;
        self.hypervisor_started = Instant::now();
        let restarted = host::start_hypervisor(&self.dir, None).and_then(|hypervisor| {
            self.hypervisor = hypervisor;
            *machine = Machine::connect(&self.dir)?;
            Ok(())
        });
        let Err(error) = restarted else { return Ok(None) };
        tracing::error!(error = %chain(&error), "failed to restart the hypervisor");
        Ok(Some(self.hypervisor_started + RESTART_INTERVAL))
    }

    /// Restarts dom0 if it has exited, ever more rarely while it does not run for long. It is tried as long as it takes: what it
    /// cannot start without, such as a file of its policy that is broken, may be mended, and the guests, whose devices wait, live meanwhile.
    /// Returns when to check again if the restart is delayed.
    fn check_dom0(&mut self) -> Result<Option<Instant>> {
        if let Some(dom0) = &mut self.dom0 {
            let Some(status) = dom0.ended()? else { return Ok(None) };
            if !self.config.supervise.dom0 {
                return Err(Error::Other(format!("dom0 exited: {status}")));
            }
            // One that an administrator has ended did not fail.
            let is_wanted = status.success() || status.signal() == Some(Signal::SIGKILL as i32);
            let run = if is_wanted { DOM0_RUNS } else { self.dom0_started.elapsed() };
            self.dom0_interval = interval_after(run, self.dom0_interval);
            tracing::warn!(%status, "dom0 exited; restarting it");
            self.dom0 = None;
        }
        let due = self.dom0_started + self.dom0_interval;
        if Instant::now() < due {
            return Ok(Some(due));
        }
        self.dom0_started = Instant::now();
        match host::start_dom0(&self.dir, &self.config, None) {
            Ok(dom0) => {
                self.dom0 = Some(dom0);
                Ok(None)
            }
            Err(error) => {
                self.dom0_interval = interval_after(Duration::ZERO, self.dom0_interval);
                tracing::error!(error = %chain(&error), again_after = ?self.dom0_interval, "failed to start dom0");
                Ok(Some(self.dom0_started + self.dom0_interval))
            }
        }
    }

    /// Restarts a guest as [`Up::check_dom0`] does dom0, if configured.
    fn check_guest(&mut self, machine: &mut Machine, index: usize) -> Result<Option<Instant>> {
        let guest = &mut self.guests[index];
        if let Some(status) = guest.process.as_mut().map_or(Ok(None), ChildProcess::exit_status)? {
            tracing::warn!(name = guest.config.name, status, "guest exited");
            guest.process = None;
        }
        if guest.process.is_some() || !self.config.supervise.guests {
            return Ok(None);
        }
        let due = guest.started + RESTART_INTERVAL;
        if Instant::now() < due {
            return Ok(Some(due));
        }
        guest.started = Instant::now();
        match self.start_guest(machine, index) {
            Ok(()) => Ok(None),
            Err(error) => {
                let name = &self.guests[index].config.name;
                tracing::error!(name, error = %chain(&error), "failed to create the guest");
                Ok(Some(Instant::now() + RESTART_INTERVAL))
            }
        }
    }

    /// Sleeps until a process exits, of which it sees no one otherwise than `with_processes`, or until `until`, or passes SIGHUP on to
    /// dom0; `true` on a signal that ends all.
    fn sleep(&mut self, signals: &Signals, until: Option<Instant>, with_processes: bool) -> Result<bool> {
        let guests = self.guests.iter().filter_map(|g| g.process.as_ref());
        let processes = [Some(&self.hypervisor), self.dom0.as_ref()].into_iter().flatten();
        let pidfds = processes.chain(guests).map(ChildProcess::pidfd);
        let pidfds: Vec<_> = pidfds.flatten().filter(|_| with_processes).collect();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![signals.stop.as_fd(), signals.hangup.as_fd()];
        fds.extend(pidfds.iter().map(AsFd::as_fd));
        if process::wait_first(&fds, timeout)? {
            return Ok(true);
        }
        if process::take_signal(&signals.hangup) {
            // The other processes have lost the terminal too.
            if signals.had_terminal && !has_terminal() {
                return Ok(true);
            }
            match &mut self.dom0 {
                Some(dom0) => dom0.hang_up(),
                // Its policy may have been mended.
                None => self.dom0_interval = RESTART_INTERVAL,
            }
        }
        Ok(false)
    }

    /// Stops all processes: guests first, so that they can close their devices.
    fn stop(self) {
        let mut guests: Vec<ChildProcess> = self.guests.into_iter().filter_map(|g| g.process).collect();
        guests.iter_mut().for_each(ChildProcess::terminate);
        guests.into_iter().for_each(|g| g.stop(STOP_TIMEOUT));
        self.dom0.into_iter().for_each(|dom0| dom0.stop(STOP_TIMEOUT));
        self.hypervisor.stop(STOP_TIMEOUT);
    }
}

/// The time between the start of a dom0 that has run for so long, and before which this time was waited, and the next start.
fn interval_after(run: Duration, interval: Duration) -> Duration {
    if run >= DOM0_RUNS { RESTART_INTERVAL } else { (interval * 2).min(LONGEST_INTERVAL) }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_that_fails_is_started_ever_more_rarely_and_one_that_has_run_at_once() {
        let mut interval = RESTART_INTERVAL;
        let mut waited = Duration::ZERO;
        for _ in 0..10 {
            interval = interval_after(Duration::ZERO, interval);
            waited += interval;
        }
        assert_eq!(interval, LONGEST_INTERVAL);
        assert!(waited >= Duration::from_secs(30), "{waited:?}");
        assert_eq!(interval_after(DOM0_RUNS, interval), RESTART_INTERVAL);
    }
}
