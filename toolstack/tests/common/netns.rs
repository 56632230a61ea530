//! Network namespaces for guests' interfaces. The test program itself has another (`own_netns.rs`).

use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use toolstack::guest::netns;

use super::program::{program, run};
use super::{Guard, Machine, eventually};

/// A network namespace, which exists while a process sleeps in it.
pub(crate) struct Namespace(Guard);

impl Namespace {
    pub(crate) fn new() -> Namespace {
        let mut sleeper = program("unshare", "util-linux");
        sleeper.args(["--net", "sleep", "infinity"]).stdout(Stdio::null());
        let namespace = Namespace(Guard(sleeper.spawn().unwrap()));
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        eventually("a namespace of its own", || {
            std::fs::read_link(format!("/proc/{}/ns/net", namespace.pid())).is_ok_and(|link| link != own)
        });
        namespace
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// Runs a function on a thread in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = netns::open(&self.pid().to_string()).unwrap();
        std::thread::spawn(move || {
            netns::enter(&namespace).unwrap();
            body()
        })
    }

    /// The command that runs a program in the namespace.
    pub(crate) fn program(&self, name: &str, package: &str) -> Command {
        let inner = program(name, package);
        let mut outer = program("nsenter", "util-linux");
        outer.args(["--net", "-t", &self.pid().to_string()]).arg(inner.get_program());
        outer
    }

    /// Gives the guest's interface an address.
    pub(crate) fn configure(&self, address: &str) {
        run(self.program("ip", "iproute2").args(["address", "add", address, "dev", "eth0"]));
        run(self.program("ip", "iproute2").args(["link", "set", "eth0", "up"]));
    }

    /// A TCP counter of the namespace (proc_pid_net(5)).
    pub(crate) fn tcp(&self, counter: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.pid())).unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_ascii_whitespace);
        let names = lines.next().unwrap();
        let mut values = lines.next().unwrap();
        let at = names.into_iter().position(|name| name == counter).unwrap();
        values.nth(at).unwrap().parse().unwrap()
    }
}

/// Creates two guests on one bridge, each with its interface in a namespace.
pub(crate) fn two_guests(machine: &Machine) -> [Namespace; 2] {
    // One of each kind.
    [("alice", 1, "copy"), ("bob", 2, "flip")].map(|(name, n, rx)| {
        let namespace = Namespace::new();
        let text = format!("name='{name}'\nvif=['mac=00:16:3e:00:00:0{n}']\n");
        let cfg = machine.file(&format!("{name}.cfg"), &text);
        let netns = namespace.pid().to_string();
        machine.ok(["create", "--netns", &netns, "--rx", rx, &cfg.display().to_string()]);
        namespace.configure(&format!("10.77.0.{n}/24"));
        namespace
    })
}
