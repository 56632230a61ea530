//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::*;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::log_limit::LogLimit;
use crate::machine::process;
use crate::output::LogStderr;

/// Xen's paravirtual disks and network interfaces, on Xen or without it.
///
/// `xpv demo` runs two guests and verifies their I/O. `xpv up host.toml` runs a machine: a store and a broker (`xpv
/// hypervisor`), the backends (`xpv dom0`), and guests (`xpv create guest.cfg`), each in a process of its own.
#[derive(Debug, Parser)]
#[command(name = "xpv", version, max_term_width = 100)]
pub struct Cli {
    /// The machine's directory [default: $XPV_DIR, or /run/xpv for root, or $XDG_RUNTIME_DIR/xpv]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Dry run: parse only, and print the JSON that `xl -N` prints (create, block-attach, network-attach)
    #[arg(short = 'N', long, global = true)]
    pub dry_run: bool,

    /// Log more to standard error; -vv logs debug messages, -vvv everything (RUST_LOG overrides it)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Keep all privileges: for debuggers and profilers (hypervisor, dom0, guest; in the environment for all that up and create start)
    #[arg(long, global = true, env = "XPV_NO_SANDBOX", hide_env_values = true)]
    pub no_sandbox: bool,

    /// Exit when the parent process PID exits
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub die_with: Option<u32>,

    /// Call setsid(2) first
    #[arg(long, global = true, hide = true)]
    pub new_session: bool,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `xpv`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // each is documented by its arguments
pub enum Command {
    Demo(demo::Args),
    Up(up::Args),
    Hypervisor(hypervisor::Args),
    Dom0(dom0::Args),
    Guest(guest::Args),
    Create(create::Args),
    Destroy(destroy::Args),
    Disk(disk::Args),
    List(list::Args),
    BlockAttach(block_attach::Args),
    BlockDetach(block_detach::Args),
    BlockList(block_list::Args),
    BlockSet(block_set::Args),
    Bridge(bridge::Args),
    NetworkAttach(network_attach::Args),
    NetworkDetach(network_detach::Args),
    NetworkList(network_list::Args),
    NetworkSet(network_set::Args),
    NetworkCapture(network_capture::Args),
    Man(man::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    DemoGuest(demo_guest::Args),
    #[command(hide = true)]
    Opener(opener::Args),
}

impl Cli {
    /// Runs the command; returns the status to exit with.
    pub fn run(self) -> Result<ExitCode> {
        process::set_name();
        self.die_with.map_or(Ok(()), process::die_with_parent)?;
        if self.new_session {
            process::new_session()?;
        }
        let dir = || Dir::choose(self.dir.as_deref());
        let sandbox = !self.no_sandbox;
        let done = match self.command {
            Command::Create(args) if self.dry_run => create::dry_run(&args),
            Command::BlockAttach(args) if self.dry_run => block_attach::dry_run(&args),
            Command::NetworkAttach(args) if self.dry_run => network_attach::dry_run(&args),
            _ if self.dry_run => Err(Error::other(
                "-N is for create, block-attach and network-attach: no other command parses only",
            )),
            Command::Demo(args) => demo::run(&args),
            Command::Up(args) => up::run(&args, self.dir.as_deref()),
            Command::Hypervisor(args) => hypervisor::run(&args, &dir()?, sandbox),
            Command::Dom0(args) => dom0::run(&args, &dir()?, sandbox),
            Command::Guest(args) => guest::run(&args, &dir()?, sandbox),
            Command::Create(args) => create::run(&args, &dir()?),
            Command::Destroy(args) => destroy::run(&args, &dir()?),
            Command::Disk(args) => return disk::run(&args, dir),
            Command::List(args) => list::run(&args, &dir()?),
            Command::BlockAttach(args) => block_attach::run(&args, &dir()?),
            Command::BlockDetach(args) => block_detach::run(&args, &dir()?),
            Command::BlockList(args) => block_list::run(&args, &dir()?),
            Command::BlockSet(args) => block_set::run(&args, &dir()?),
            Command::Bridge(args) => bridge::run(&args, &dir()?),
            Command::NetworkAttach(args) => network_attach::run(&args, &dir()?),
            Command::NetworkDetach(args) => network_detach::run(&args, &dir()?),
            Command::NetworkList(args) => network_list::run(&args, &dir()?),
            Command::NetworkSet(args) => network_set::run(&args, &dir()?),
            Command::NetworkCapture(args) => network_capture::run(&args, &dir()?),
            Command::Man(args) => man::run(&args, Cli::command()),
            Command::Completions(args) => completions::run(&args, Cli::command()),
            Command::DemoGuest(args) => demo_guest::run(&args, &dir()?),
            Command::Opener(args) => opener::run(&args, &dir()?, sandbox),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// Starts logging to standard error: from level info for commands that keep running, from level warn for the others.
pub fn start_logging(cli: &Cli) {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{EnvFilter, Layer};
    let keeps_running = matches!(
        cli.command,
        Command::Up(_) | Command::Hypervisor(_) | Command::Dom0(_) | Command::Guest(_) | Command::Opener(_)
    );
    let level = match (cli.verbose, keeps_running) {
        (0, false) => "warn",
        (0, true) | (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let asked = EnvFilter::try_from_default_env();
    // Whoever asks for more than usual wants all of it.
    let limit = (cli.verbose == 0 && asked.is_err()).then(LogLimit::new);
    let filter = asked.unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(|| LogStderr).with_ansi(terminal);
    tracing_subscriber::registry().with(filter).with(lines.with_filter(limit)).init();
}
