//! A machine of processes: `xpv up` in a temporary directory. All its processes end when it is dropped.
#![allow(dead_code)] // Each test program uses only some of the functions.

pub(crate) mod netns;
mod own_netns;
pub(crate) mod program;
pub(crate) mod qcow2;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use xenstore::{Client, Nodes};

/// The longest wait for any one event.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A process that is killed when this is dropped.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine. Its directory is dropped last.
pub(crate) struct Machine {
    up: Guard,
    directory: tempfile::TempDir,
}

impl Machine {
    /// Starts a machine with the bridge xenbr0 and no guests.
    pub(crate) fn new() -> Machine {
        Machine::with("")
    }

    /// Starts a machine from the text of a host file.
    pub(crate) fn with(host: &str) -> Machine {
        let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
        let log = fs::File::create(directory.path().join("up.log")).unwrap();
        Machine::start(directory, host, log)
    }

    /// Starts a machine whose processes log to this file.
    pub(crate) fn logging_to(log: fs::File) -> Machine {
        Machine::start(tempfile::Builder::new().prefix("xpv").tempdir().unwrap(), "", log)
    }

    fn start(directory: tempfile::TempDir, host: &str, log: fs::File) -> Machine {
        let file = directory.path().join("host.toml");
        fs::write(&file, host).unwrap();
        let mut up = command(&directory.path().join("run"));
        up.arg("up").arg(&file).stdout(Stdio::piped()).stderr(log);
        let mut up = Guard(up.spawn().unwrap());
        let mut ready_line = String::new();
        let output = up.0.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut ready_line).unwrap();
        let machine = Machine { up, directory };
        assert_eq!(ready_line, "ready\n", "{}", machine.log());
        machine
    }

    /// The log of the machine's processes.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("up.log")).unwrap_or_default()
    }

    /// The machine's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The path of a file beside the machine's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file with this text.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Creates an image of this number of bytes, all zero.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
        self.path(name)
    }

    /// The URI of a guest's exported disk.
    pub(crate) fn nbd(&self, guest: &str, dev: &str) -> String {
        format!("nbd+unix:///?socket={}", self.dir().join(guest).join(format!("{dev}.nbd")).display())
    }

    /// Runs xpv.
    pub(crate) fn xpv<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let output = command(&self.dir()).args(args).output().unwrap();
        assert!(output.status.code().is_some(), "killed: {output:?}");
        output
    }

    /// Runs xpv, which must succeed; returns its output.
    pub(crate) fn ok<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.xpv(args);
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}\nthe machine's log:\n{}", self.log());
        stdout
    }

    /// Runs xpv, which must fail with one error line; returns that line.
    pub(crate) fn fails<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.xpv(args);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        assert_eq!(stdout, "");
        one_line(&stderr)
    }

    /// Creates a guest from the text of a cfg.
    pub(crate) fn create(&self, name: &str, rest: &str) {
        let cfg = self.file(&format!("{name}.cfg"), &format!("name = '{name}'\n{rest}\n"));
        self.ok([Path::new("create"), &cfg]);
    }

    /// Opens a connection to the store as dom0.
    pub(crate) fn store(&self) -> Client {
        Client::open_unix(self.dir().join("xenstored.sock")).unwrap()
    }

    /// Reads every node and its value.
    pub(crate) fn nodes(&self) -> Vec<(String, String)> {
        let mut client = self.store();
        let mut nodes = Vec::new();
        descend(&mut client, "", &mut nodes);
        nodes
    }

    /// Kills dom0, of which `xpv up` starts another one; returns the killed one's process id.
    pub(crate) fn kill_dom0(&self) -> i32 {
        let pid = self.pid("Domain-0").expect("dom0 runs");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }

    /// Waits until another dom0 runs than that of this process id.
    pub(crate) fn await_dom0_after(&self, killed: i32) {
        eventually("another dom0 runs", || self.pid("Domain-0").is_some_and(|pid| pid != killed));
    }

    /// The process id of the broker and store.
    pub(crate) fn hypervisor(&self) -> i32 {
        let stream = UnixStream::connect(self.dir().join("xenstored.sock")).unwrap();
        getsockopt(&stream, PeerCredentials).unwrap().pid()
    }

    /// The process id of dom0's child, which opens images.
    pub(crate) fn opener(&self) -> i32 {
        let dom0 = self.pid("Domain-0").expect("dom0 runs").cast_unsigned();
        let mut pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let is_child = |pid: &u32| toolstack::machine::process::parent(*pid) == Some(dom0);
        pids.find(is_child).expect("dom0 has a child").cast_signed()
    }

    /// The process id of `xpv up`.
    pub(crate) fn supervisor(&self) -> i32 {
        self.up.0.id().cast_signed()
    }

    /// The process id of a domain; `None` if it does not run.
    pub(crate) fn pid(&self, domain: &str) -> Option<i32> {
        let list = self.ok(["list", "--json", domain]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list[0]["pid"].as_i64().map(|pid| pid.try_into().unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine's log:\n{}", self.log());
        }
    }
}

fn descend(client: &mut Client, path: &str, nodes: &mut Vec<(String, String)>) {
    let at = if path.is_empty() { "/" } else { path };
    // A node that is removed meanwhile is skipped.
    let Ok(children) = client.directory(at) else { return };
    for child in children {
        let path = format!("{path}/{child}");
        if let Ok(value) = client.read_text(&path) {
            nodes.push((path.clone(), value));
            descend(client, &path, nodes);
        }
    }
}

/// The command that runs xpv on the machine in `dir`; the process ends with the test program.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xpv"));
    command.arg("--dir").arg(dir).arg("--die-with").arg(std::process::id().to_string());
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A program's standard output and standard error.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The one line of standard error that is not a warning.
pub(crate) fn one_line(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("xpv: warning: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

/// Waits until a condition is true.
pub(crate) fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {BOUND:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
