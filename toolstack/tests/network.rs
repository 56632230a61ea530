//! ping and iperf3 between two network namespaces that are linked only by two vifs and the bridge.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{BOUND, Guard, Machine, eventually};
use xenstore::Nodes;

#[test]
fn ping_and_iperf3_between_two_namespaces_lose_nothing() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let stdout =
        run(alice.program("ping", "iputils-ping").args(["-c", "5", "-i", "0.2", "-W", "5", "10.77.0.2"]));
    assert!(stdout.contains(" 0% packet loss"), "{stdout}");
    for reverse in [&[][..], &["--reverse"]] {
        let mut server = bob.program("iperf3", "iperf3");
        let mut server = Guard(server.args(["-s", "-1", "-J"]).stdout(Stdio::null()).spawn().unwrap());
        eventually("iperf3 listens", || listens(&bob, 5201));
        let mut client = alice.program("iperf3", "iperf3");
        let stdout = run(client.args(["-c", "10.77.0.2", "-t", "2", "-J"]).args(reverse));
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(received > 10 << 20, "{received} bytes in two seconds");
        let sent = report["end"]["sum_sent"]["bits_per_second"].as_f64().unwrap() / 1e9;
        println!("iperf3 {reverse:?}: {sent:.2} Gbit/s");
        server.0.wait().unwrap();
    }
    assert_pages_flipped(&machine);
    for namespace in [&alice, &bob] {
        // Each end's kernel has verified every checksum.
        assert_eq!(namespace.tcp("InCsumErrors"), 0);
        assert!(namespace.tcp("InSegs") > 100);
    }
}

/// Asserts that bob received frames in flipped pages, and gave back as many.
fn assert_pages_flipped(machine: &Machine) {
    let list: serde_json::Value =
        serde_json::from_str(&machine.ok(["network-list", "bob", "--json"])).unwrap();
    let grants = &list[0]["stats"]["grants"];
    let count = |name: &str| grants[name].as_u64().unwrap();
    assert!(count("flipped") > 100 && count("returned") >= count("flipped"), "{grants}");
    assert_eq!(count("refused"), 0, "{grants}");
}

/// Whether a process listens on a TCP port in the namespace, by /proc/net/tcp6 and tcp (state 0A).
fn listens(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    ["tcp", "tcp6"].iter().any(|kind| {
        let text =
            std::fs::read_to_string(format!("/proc/{}/net/{kind}", namespace.pid())).unwrap_or_default();
        text.lines().any(|line| line.contains(&wanted) && line.contains(" 0A "))
    })
}

#[test]
fn interface_hotplugged_while_another_pings_loses_no_ping() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let mut ping = alice.program("ping", "iputils-ping");
    let ping =
        ping.args(["-c", "20", "-i", "0.1", "-W", "5", "10.77.0.2"]).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..3 {
        machine.ok(["network-attach", "alice", "mac=00:16:3e:00:00:77"]);
        let stdout = run(alice.program("ip", "iproute2").args(["link", "show", "eth1"]));
        assert!(stdout.contains("00:16:3e:00:00:77"), "{stdout}");
        let list: serde_json::Value =
            serde_json::from_str(&machine.ok(["network-list", "alice", "--json"])).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 2);
        machine.ok(["network-detach", "alice", "00:16:3e:00:00:77"]);
        eventually("the tap is removed", || {
            !alice.program("ip", "iproute2").args(["link", "show", "eth1"]).output().unwrap().status.success()
        });
    }
    let output = ping.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains(" 0% packet loss"), "{stdout}");
}

#[test]
fn detach_and_destroy_are_logged_without_a_warning() {
    let machine = Machine::new();
    let [_alice, _bob] = two_guests(&machine);
    machine.ok(["network-detach", "alice", "0"]);
    machine.ok(["network-attach", "alice", "mac=00:16:3e:00:00:77"]);
    let image = machine.image("a.img", 1 << 20);
    machine.ok(["block-attach", "bob", &format!("{},raw,xvda,rw", image.display())]);
    machine.ok(["destroy", "bob"]);
    machine.ok(["destroy", "alice"]);
    let removed = |domid: u32| machine.log().matches(&format!("backend/vif/{domid}/0\"")).count();
    eventually("dom0 has removed all vifs", || removed(1) == 2 && removed(2) == 1);
    let log = machine.log();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
}

/// `rate=` limits what a guest sends, and the key `rate` of its backend changes that at any time, as under Linux's backend.
#[test]
fn rate_limits_what_a_guest_sends_and_is_changed_live() {
    const BYTES: usize = 1 << 20;
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let transfer = || {
        let listener = bob.spawn(|| TcpListener::bind("10.77.0.2:0").unwrap()).join().unwrap();
        let address = listener.local_addr().unwrap();
        let sender =
            alice.spawn(move || TcpStream::connect(address).unwrap().write_all(&[7; BYTES]).unwrap());
        let start = Instant::now();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!(std::io::copy(&mut stream, &mut std::io::sink()).unwrap(), BYTES as u64);
        sender.join().unwrap();
        start.elapsed()
    };
    let rate = format!("/local/domain/0/backend/vif/{}/0/rate", domid(&machine, "alice"));
    // A burst of 100,000 bytes and one frame are free; the headers are not counted here.
    let at_least = Duration::from_millis(((BYTES - 100_000 - 65_536) / 1000) as u64);
    let changed = |count| {
        eventually("the rate is changed", || machine.log().matches("rate limit changed").count() == count)
    };
    machine.store().write(&rate, "100000,100000").unwrap();
    changed(1);
    let limited = transfer();
    assert!(limited >= at_least, "{limited:?}");
    machine.store().write(&rate, "fast").unwrap();
    eventually("the bad rate is logged", || machine.log().contains("found \"fast\""));
    assert!(transfer() >= at_least);
    machine.store().rm(&rate).unwrap();
    changed(2);
    let free = transfer();
    assert!(free < at_least, "{free:?}");
    // And from the start.
    machine.ok(["network-attach", "alice", "mac=00:16:3e:00:00:77,rate=8Mb/s"]);
    eventually("the rate is in the log", || machine.log().contains("rate=50000 bytes in 50ms"));
}

fn domid(machine: &Machine, name: &str) -> u64 {
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["list", "--json"])).unwrap();
    let row = list.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    row["domid"].as_u64().unwrap()
}
