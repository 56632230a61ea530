//! A machine of xpv's processes on the local hypervisor: `xpv hypervisor`, `xpv dom0` and a process a guest, as an operator
//! starts them.

use crate::process::{Process, output};
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package of errors about the program itself.
const PACKAGE: &str = "none: `cargo build --release -p toolstack` builds it";

/// The machine. Its guests end with its hypervisor.
pub struct Machine {
    program: PathBuf,
    /// What dom0 is started with.
    dom0_arguments: Vec<String>,
    /// `None` only while it is replaced.
    dom0: Option<Process>,
    hypervisor: Process,
    directory: tempfile::TempDir,
}

/// A domain, as `xpv list --json` shows it.
#[derive(Deserialize)]
struct Listed {
    domid: u16,
    pid: Option<u32>,
}

impl Machine {
    /// Starts a machine without guests. The calling thread must outlive it: its processes end with the thread.
    ///
    /// # Errors
    /// A process does not start.
    pub fn start(program: &Path) -> Result<Self, String> {
        Self::start_with(program, &[])
    }

    /// Starts a machine as [`Self::start`] does, whose dom0 has these arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(program: &Path, dom0_arguments: &[&str]) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("xpv-bench").tempdir();
        let directory = directory.map_err(|e| format!("a directory for a machine: {e}"))?;
        let command = |name| command(program, directory.path(), name);
        let hypervisor = Process::start_ready(&mut command("hypervisor")?, PACKAGE)?;
        let dom0 = Process::start_ready(command("dom0")?.args(dom0_arguments), PACKAGE)?;
        let dom0_arguments = dom0_arguments.iter().copied().map(str::to_owned).collect();
        Ok(Self { program: program.to_owned(), dom0_arguments, dom0: Some(dom0), hypervisor, directory })
    }

    /// Creates a guest of that name and these lines of an `xl.cfg`, whose interfaces are in the namespace of that path, and
    /// waits until its devices are connected.
    ///
    /// # Errors
    /// What xpv says.
    pub fn create(&self, name: &str, lines: &str, namespace: &str) -> Result<(), String> {
        self.create_with(name, lines, namespace, "copy")
    }

    /// Creates a guest as [`Self::create`] does, whose interfaces receive by that method.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_with(&self, name: &str, lines: &str, namespace: &str, rx: &str) -> Result<(), String> {
        let cfg = self.path(&format!("{name}.cfg"));
        fs::write(&cfg, format!("name = '{name}'\n{lines}\n"))
            .map_err(|e| format!("{}: {e}", cfg.display()))?;
        let mut create = self.xpv();
        output(create.args(["create", "--netns", namespace, "--rx", rx]).arg(&cfg), PACKAGE).map(drop)
    }

    /// The process of a guest.
    ///
    /// # Errors
    /// It does not run.
    pub fn guest(&self, name: &str) -> Result<u32, String> {
        let said = output(self.xpv().args(["list", "--json", name]), PACKAGE)?;
        let listed: Vec<Listed> =
            serde_json::from_str(&said).map_err(|e| format!("xpv list: {e}: {said}"))?;
        listed.first().and_then(|domain| domain.pid).ok_or_else(|| format!("guest {name} does not run"))
    }

    /// Bytes of the frames that the vifs of a guest were sent, by dom0's counters.
    ///
    /// # Errors
    /// What xpv says.
    pub fn received(&self, name: &str) -> Result<u64, String> {
        let said = output(self.xpv().args(["network-list", "--json", name]), PACKAGE)?;
        let vifs: Vec<serde_json::Value> =
            serde_json::from_str(&said).map_err(|e| format!("xpv network-list: {e}: {said}"))?;
        let bytes = |vif: &serde_json::Value| vif["stats"]["operations"]["receive"]["bytes"].as_u64();
        vifs.iter().map(bytes).sum::<Option<u64>>().ok_or_else(|| format!("no bytes in {said}"))
    }

    /// The processes of all guests.
    ///
    /// # Errors
    /// What xpv says.
    pub fn guests(&self) -> Result<Vec<u32>, String> {
        let said = output(self.xpv().args(["list", "--json"]), PACKAGE)?;
        let listed: Vec<Listed> =
            serde_json::from_str(&said).map_err(|e| format!("xpv list: {e}: {said}"))?;
        Ok(listed.iter().filter(|domain| domain.domid != 0).filter_map(|domain| domain.pid).collect())
    }

    /// The process of the hypervisor.
    pub fn hypervisor(&self) -> u32 {
        self.hypervisor.pid()
    }

    /// The process of dom0.
    pub fn dom0(&self) -> u32 {
        self.dom0.as_ref().map_or(0, Process::pid)
    }

    /// Ends dom0 by a signal, and starts another as soon as it has ended. Does not wait until that one is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_dom0(&mut self, signal: Signal) -> Result<(), String> {
        if let Some(dom0) = self.dom0.take() {
            dom0.end(signal);
        }
        let mut command = command(&self.program, self.directory.path(), "dom0")?;
        command.args(&self.dom0_arguments);
        self.dom0 = Some(Process::start(command.stdout(Stdio::null()), PACKAGE)?);
        Ok(())
    }

    /// The machine's directory.
    pub fn directory(&self) -> PathBuf {
        directory(self.directory.path())
    }

    /// The path of a file beside the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The socket of a guest's disk.
    pub fn nbd(&self, guest: &str, device: &str) -> PathBuf {
        directory(self.directory.path()).join(guest).join(format!("{device}.nbd"))
    }

    /// The last lines of what dom0 and the hypervisor logged.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    fn xpv(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_remove("RUST_LOG").arg("--dir").arg(directory(self.directory.path()));
        command
    }
}

fn directory(base: &Path) -> PathBuf {
    base.join("run")
}

/// The command of a process that ends with the calling thread, and logs to a file.
fn command(program: &Path, base: &Path, name: &str) -> Result<Command, String> {
    let path = base.join("log");
    let log = fs::File::options().create(true).append(true).open(&path);
    let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
    let mut command = Command::new(program);
    command.env_remove("RUST_LOG").arg("--dir").arg(directory(base));
    command.args(["--die-with", &std::process::id().to_string(), name]);
    command.stdin(Stdio::null()).stderr(log);
    Ok(command)
}
