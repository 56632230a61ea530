//! A whole machine of processes: `xpv up` in a directory of its own, gone with all its processes when it is dropped.
#![allow(dead_code)] // each test program uses a part of it

pub(crate) mod netns;
mod own_netns;
pub(crate) mod program;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use xenstore::{Client, Nodes};

/// Longest that anything here may take.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A process that is killed when this is dropped.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine. Its directory goes last.
pub(crate) struct Machine {
    up: Guard,
    directory: tempfile::TempDir,
}

impl Machine {
    /// A machine with the bridge xenbr0 and no guests.
    pub(crate) fn new() -> Machine {
        Machine::with("")
    }

    /// A machine by its description.
    pub(crate) fn with(host: &str) -> Machine {
        let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
        let file = directory.path().join("host.toml");
        fs::write(&file, host).unwrap();
        let log = fs::File::create(directory.path().join("up.log")).unwrap();
        let mut up = command(&directory.path().join("run"));
        up.arg("up").arg(&file).stdout(Stdio::piped()).stderr(log);
        let mut up = Guard(up.spawn().unwrap());
        let mut machine_says = String::new();
        let output = up.0.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut machine_says).unwrap();
        let machine = Machine { up, directory };
        assert_eq!(machine_says, "ready\n", "{}", machine.log());
        machine
    }

    /// What the machine's processes have said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("up.log")).unwrap_or_default()
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// A file beside it, not there yet.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with this text.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// An image of so many bytes, all zero.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
        self.path(name)
    }

    /// Where a guest's disk is exported.
    pub(crate) fn nbd(&self, guest: &str, dev: &str) -> String {
        format!("nbd+unix:///?socket={}", self.dir().join(guest).join(format!("{dev}.nbd")).display())
    }

    /// Runs xpv.
    pub(crate) fn xpv<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let output = command(&self.dir()).args(args).output().unwrap();
        assert!(output.status.code().is_some(), "killed: {output:?}");
        output
    }

    /// Runs xpv, which must succeed; what it prints.
    pub(crate) fn ok<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.xpv(args);
        let (said, complained) = texts(&output);
        assert!(output.status.success(), "{complained}\nthe machine:\n{}", self.log());
        said
    }

    /// Runs xpv, which must fail with one line of complaint.
    pub(crate) fn fails<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.xpv(args);
        let (said, complained) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{said}{complained}");
        assert_eq!(said, "");
        one_line(&complained)
    }

    /// Creates a guest from the text of a cfg.
    pub(crate) fn create(&self, name: &str, rest: &str) {
        let cfg = self.file(&format!("{name}.cfg"), &format!("name = '{name}'\n{rest}\n"));
        self.ok([Path::new("create"), &cfg]);
    }

    /// Its store, as dom0.
    pub(crate) fn store(&self) -> Client {
        Client::open_unix(self.dir().join("xenstored.sock")).unwrap()
    }

    /// Every node and its value.
    pub(crate) fn nodes(&self) -> Vec<(String, String)> {
        let (mut client, mut nodes) = (self.store(), Vec::new());
        descend(&mut client, "", &mut nodes);
        nodes
    }

    /// The number of the process that is broker and store.
    pub(crate) fn hypervisor(&self) -> i32 {
        let stream = UnixStream::connect(self.dir().join("xenstored.sock")).unwrap();
        getsockopt(&stream, PeerCredentials).unwrap().pid()
    }

    /// The number of a domain's process.
    pub(crate) fn pid(&self, domain: &str) -> Option<i32> {
        let list = self.ok(["list", "--json", domain]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list[0]["pid"].as_i64().map(|pid| pid.try_into().unwrap())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine:\n{}", self.log());
        }
    }
}

fn descend(client: &mut Client, path: &str, nodes: &mut Vec<(String, String)>) {
    let at = if path.is_empty() { "/" } else { path };
    // What is removed meanwhile is as good as never there.
    let Ok(children) = client.directory(at) else { return };
    for child in children {
        let path = format!("{path}/{child}");
        if let Ok(value) = client.read_text(&path) {
            nodes.push((path.clone(), value));
            descend(client, &path, nodes);
        }
    }
}

/// xpv on the machine in `dir`, killed with the thread that runs it.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xpv"));
    command.arg("--dir").arg(dir).arg("--die-with").arg(std::process::id().to_string());
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// What a program printed and what it complained of.
pub(crate) fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The complaint, without warnings; it must be one line.
pub(crate) fn one_line(complained: &str) -> String {
    let lines: Vec<&str> = complained.lines().filter(|line| !line.starts_with("xpv: warning: ")).collect();
    assert_eq!(lines.len(), 1, "{complained}");
    lines[0].to_owned()
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {BOUND:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
