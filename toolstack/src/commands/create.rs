//! `xpv create`: a guest from its `xl.cfg`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::GuestConfig;
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::guest::{self, How, create};
use crate::machine::{Machine, process};

/// Create a guest from its xl.cfg: name, disk and vif
///
/// Waits until all its devices are connected; if one cannot be, nothing is left of the guest. Its process then goes
/// on by itself; its disks are in DIR/NAME/DEV.nbd, its interfaces are taps.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's configuration, in the syntax of xl.cfg(5)
    cfg: PathBuf,

    /// Put its interfaces into this network namespace
    #[arg(long, value_name = "NAME|PID|PATH")]
    netns: Option<String>,

    /// Stay, say what the guest says, and end with it
    #[arg(short = 'F', long)]
    foreground: bool,

    /// How long its devices may take to connect, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

/// Creates it.
///
/// # Errors
/// Why it could not be created.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let config = GuestConfig::read(&args.cfg)?;
    config.warnings.show();
    let interrupted = process::interrupted()?;
    let mut machine = Machine::connect(dir)?;
    let how = How {
        origin: &Origin::file(&args.cfg),
        start: &|machine| guest::start(machine, &config.name, args.netns.as_deref(), args.foreground),
        bound: Duration::from_secs(args.timeout),
    };
    let (domid, mut process) = create(&mut machine, &config, &how, || process::go_on(&interrupted))?;
    println!("{} is domain {domid}", config.name);
    if !args.foreground {
        process.release();
        return Ok(());
    }
    let domain = machine.control.await_death(domid)?;
    process::wait_for(&domain, &interrupted)?;
    if process::go_on(&interrupted).is_err() {
        process.end(Duration::from_secs(5));
        return Ok(());
    }
    match process.ended()? {
        Some(status) if status == "exit status: 0" => Ok(()),
        status => Err(Error::Other(format!("{} ended: {}", config.name, status.unwrap_or_default()))),
    }
}
