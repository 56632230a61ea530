//! ping and iperf3 between two network namespaces whose only link is two vifs and our bridge.
//!
//! The test runs itself again in a user namespace of its own, so that an ordinary user may make taps there.

mod common;

use std::process::{Command, Stdio};

use common::program::{program, run};
use common::{Guard, Machine, eventually};

/// Says that this is the inner run.
const INSIDE: &str = "XPV_TEST_INSIDE";

/// Runs the test of this name again, in namespaces of its own; `true` inside.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut again = program("unshare", "util-linux");
    again.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    let status = again.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "inside: {status}");
    false
}

/// A network namespace, kept by a process that sleeps in it.
struct Namespace(Guard);

impl Namespace {
    fn new() -> Namespace {
        let mut keeper = program("unshare", "util-linux");
        keeper.args(["--net", "sleep", "infinity"]).stdout(Stdio::null());
        let namespace = Namespace(Guard(keeper.spawn().unwrap()));
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        eventually("a namespace of its own", || {
            std::fs::read_link(format!("/proc/{}/ns/net", namespace.pid())).is_ok_and(|theirs| theirs != ours)
        });
        namespace
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// A program to be run in it.
    fn program(&self, name: &str, package: &str) -> Command {
        let inner = program(name, package);
        let mut outer = program("nsenter", "util-linux");
        outer.args(["--net", "-t", &self.pid().to_string()]).arg(inner.get_program());
        outer
    }

    /// Gives the guest's interface an address.
    fn configure(&self, address: &str) {
        run(self.program("ip", "iproute2").args(["address", "add", address, "dev", "eth0"]));
        run(self.program("ip", "iproute2").args(["link", "set", "eth0", "up"]));
    }

    /// A counter of TCP's in this namespace (proc_pid_net(5)).
    fn tcp(&self, counter: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.pid())).unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_ascii_whitespace);
        let (names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.into_iter().position(|name| name == counter).unwrap();
        values.nth(at).unwrap().parse().unwrap()
    }
}

/// Two guests on one bridge, each with its interface in a namespace.
fn two_guests(machine: &Machine, vif: &str) -> [Namespace; 2] {
    [("alice", 1), ("bob", 2)].map(|(name, n)| {
        let namespace = Namespace::new();
        let text = format!("name='{name}'\nvif=['mac=00:16:3e:00:00:0{n}{vif}']\n");
        let cfg = machine.file(&format!("{name}.cfg"), &text);
        machine.ok(["create", "--netns", &namespace.pid().to_string(), &cfg.display().to_string()]);
        namespace.configure(&format!("10.77.0.{n}/24"));
        namespace
    })
}

#[test]
fn ping_and_iperf3_between_two_namespaces() {
    if !inside("ping_and_iperf3_between_two_namespaces") {
        return;
    }
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine, "");
    let said =
        run(alice.program("ping", "iputils-ping").args(["-c", "5", "-i", "0.2", "-W", "5", "10.77.0.2"]));
    assert!(said.contains(" 0% packet loss"), "{said}");
    for reverse in [&[][..], &["--reverse"]] {
        let mut server = bob.program("iperf3", "iperf3");
        let mut server = Guard(server.args(["-s", "-1", "-J"]).stdout(Stdio::null()).spawn().unwrap());
        eventually("iperf3 listens", || listens(&bob, 5201));
        let mut client = alice.program("iperf3", "iperf3");
        let said = run(client.args(["-c", "10.77.0.2", "-t", "2", "-J"]).args(reverse));
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let received = said["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(received > 10 << 20, "{received} octets in two seconds");
        let sent = said["end"]["sum_sent"]["bits_per_second"].as_f64().unwrap() / 1e9;
        println!("iperf3 {reverse:?}: {sent:.2} Gbit/s");
        server.0.wait().unwrap();
    }
    for namespace in [&alice, &bob] {
        // Checksums are on: each end's kernel has looked at every one.
        assert_eq!(namespace.tcp("InCsumErrors"), 0);
        assert!(namespace.tcp("InSegs") > 100);
    }
}

/// Whether somebody listens on a TCP port there, by /proc/net/tcp6 and tcp (state 0A).
fn listens(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    ["tcp", "tcp6"].iter().any(|kind| {
        let text =
            std::fs::read_to_string(format!("/proc/{}/net/{kind}", namespace.pid())).unwrap_or_default();
        text.lines().any(|line| line.contains(&wanted) && line.contains(" 0A "))
    })
}

#[test]
fn an_interface_comes_and_goes_while_another_talks() {
    if !inside("an_interface_comes_and_goes_while_another_talks") {
        return;
    }
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine, "");
    let mut ping = alice.program("ping", "iputils-ping");
    let ping =
        ping.args(["-c", "20", "-i", "0.1", "-W", "5", "10.77.0.2"]).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..3 {
        machine.ok(["network-attach", "alice", "mac=00:16:3e:00:00:77"]);
        let said = run(alice.program("ip", "iproute2").args(["link", "show", "eth1"]));
        assert!(said.contains("00:16:3e:00:00:77"), "{said}");
        let list: serde_json::Value =
            serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 2);
        machine.ok(["network-detach", "alice", "00:16:3e:00:00:77"]);
        eventually("the tap is gone", || {
            !alice.program("ip", "iproute2").args(["link", "show", "eth1"]).output().unwrap().status.success()
        });
    }
    let output = ping.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(" 0% packet loss"), "{said}");
}
