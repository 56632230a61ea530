//! `xpv create`: creates a guest from its `xl.cfg`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::rx::RxMethod;
use crate::config::{DomainConfig, GuestConfig, Warnings, json};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::guest::{self, CreateOptions, Interfaces, create};
use crate::machine::{Machine, process};
use crate::output;

/// Create a guest from its xl.cfg: name, disk and vif
///
/// Waits until all its devices are connected; if one cannot be, the guest is removed again. Its process then runs in
/// the background; its disks are NBD sockets DIR/NAME/DEV.nbd, its interfaces are taps.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's configuration, in the syntax of xl.cfg(5)
    cfg: PathBuf,

    /// Further settings, which replace those of the file: 'name="web2"' 'memory=512'
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// Put its interfaces into this network namespace
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,

    /// How its interfaces receive
    #[arg(long, value_name = "METHOD", default_value = "copy")]
    rx: RxMethod,

    /// Stay in the foreground, show the guest's output, and exit with it
    #[arg(short = 'F', long)]
    foreground: bool,

    /// How long the devices may take to connect, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Parses the configuration as xl does, and prints it as `xl -N create` does.
///
/// # Errors
/// The configuration is invalid.
pub fn dry_run(args: &Args) -> Result<()> {
    let mut warnings = Warnings::default();
    let config = DomainConfig::read(&args.cfg, &args.settings, &mut warnings)?;
    warnings.show();
    output::text(&json::to_string(&config)?)
}

/// Creates the guest.
///
/// # Errors
/// Why the guest could not be created, or with `--foreground` how it failed.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let config = GuestConfig::read(&args.cfg, &args.settings)?;
    config.warnings.show();
    let interrupted = process::interrupt_flag()?;
    let mut machine = Machine::connect(dir)?;
    let interfaces = Interfaces { netns: args.netns.as_deref(), rx: args.rx };
    let options = CreateOptions {
        origin: &Origin::file(&args.cfg),
        start: &|machine| guest::start(machine, &config.name, interfaces, args.foreground),
        timeout: Duration::from_secs(args.timeout),
    };
    let (domid, mut process) =
        create(&mut machine, &config, &options, || process::check_interrupted(&interrupted))?;
    let created = output::line(format_args!("{} is domain {domid}", config.name));
    if !args.foreground {
        process.detach();
        return created;
    }
    let domain = machine.control.await_death(domid)?;
    process::wait_readable(&domain, &interrupted)?;
    if process::check_interrupted(&interrupted).is_err() {
        process.stop(Duration::from_secs(5));
        return Ok(());
    }
    match process.exit_status()? {
        Some(status) if status == "exit status: 0" => Ok(()),
        status => Err(Error::Other(format!("{} exited: {}", config.name, status.unwrap_or_default()))),
    }
}
