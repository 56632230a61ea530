//! dom0's control socket: counters of disks and vifs while they are used, and commands when dom0 is absent or stuck.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::netns::two_guests;
use common::program::run;
use common::{BOUND, Guard, Machine, command, eventually, texts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;

fn json(machine: &Machine, args: &[&str]) -> Value {
    serde_json::from_str(&machine.ok(args)).unwrap()
}

/// The counters of a guest's only disk.
fn disk_stats(machine: &Machine) -> Value {
    json(machine, &["block-list", "web", "--json"])[0]["stats"].clone()
}

fn requests(stats: &Value, operation: &str) -> u64 {
    stats["operations"][operation]["requests"].as_u64().unwrap()
}

/// A machine with the guest `web`, which has a disk of one MiB.
fn web() -> Machine {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    machine.create("web", &format!("disk=['vdev=xvda,target={}']", image.display()));
    machine
}

fn connect(machine: &Machine) -> UnixStream {
    let stream = UnixStream::connect(machine.dir().join("control.sock")).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
}

/// Sends a line on a connection of its own; returns the reply.
fn ask(machine: &Machine, line: &str) -> Value {
    let mut stream = connect(machine);
    writeln!(stream, "{line}").unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    serde_json::from_str(&reply).unwrap()
}

#[test]
fn disks_counters_grow_while_it_is_read_and_written() {
    let machine = web();
    let before = disk_stats(&machine);
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    for block in 0..40 {
        client.send_write(block, &[7; BLOCK]).unwrap();
        client.written().unwrap();
        assert_eq!(client.read(block).unwrap(), [7; BLOCK]);
    }
    let after = disk_stats(&machine);
    for operation in ["read", "write"] {
        assert_eq!(requests(&after, operation), requests(&before, operation) + 40, "{after}");
        let bytes = |stats: &Value| stats["operations"][operation]["bytes"].as_u64().unwrap();
        assert_eq!(bytes(&after), bytes(&before) + 40 * BLOCK as u64);
        let latency = &after["operations"][operation]["latency_ns"];
        let at = |name: &str| latency[name].as_u64().unwrap();
        assert!(0 < at("p50") && at("p50") <= at("p99") && at("p99_9") <= at("max"), "{latency}");
        assert_eq!(after["operations"][operation]["errors"]["io"], 0);
    }
    assert_eq!(after["in_flight"], 0);
    let grown = |field: &str, of: &str| after[field][of].as_u64() > before[field][of].as_u64();
    assert!(grown("grants", "mapped"), "{after}");
    assert!(grown("notifications", "sent") || grown("notifications", "suppressed"), "{after}");
    let table = machine.ok(["block-list", "web"]);
    assert!(table.starts_with("Vdev   Name   BE  handle state BE-path"), "{table}");
}

#[test]
fn disk_has_a_queue_for_each_processor_and_its_counters_are_their_sums() {
    let machine = web();
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    // More at once than one queue gets before another.
    (0..100).for_each(|block| client.send_write(block, &[7; BLOCK]).unwrap());
    for _ in 0..100 {
        client.written().unwrap();
    }
    let stats = disk_stats(&machine);
    let queues = stats["queues"].as_array().unwrap();
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(queues.len(), processors.min(8), "{stats}");
    let written: Vec<_> = queues.iter().map(|queue| requests(queue, "write")).collect();
    assert_eq!((written.iter().sum::<u64>(), requests(&stats, "write")), (100, 100), "{stats}");
    assert!(queues.iter().all(|queue| queue["in_flight"] == 0 && queue["wakeups"].is_u64()), "{stats}");
    let negotiated = |name: &str| stats["negotiated"][name].as_u64();
    assert_eq!(negotiated("queues"), Some(queues.len() as u64), "{stats}");
    assert_eq!((negotiated("indirect_segments"), negotiated("discard")), (Some(256), Some(1)), "{stats}");
    assert!(negotiated("ring_pages") >= Some(1), "{stats}");
}

#[test]
fn large_commands_are_large_requests() {
    let machine = web();
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    let data: Vec<u8> = (0..MIB).map(|at| (at / 512 % 251) as u8).collect();
    client.send_blocks(0, &data).unwrap();
    client.written().unwrap();
    let stats = disk_stats(&machine);
    assert_eq!(requests(&stats, "write"), 1, "{stats}");
    assert_eq!(client.read(200).unwrap()[..], data[200 * BLOCK..][..BLOCK]);
}

#[test]
fn totals_of_a_domain_are_those_of_all_its_devices() {
    let machine = web();
    let image = machine.image("b.img", MIB);
    machine.ok(["block-attach", "web", &format!("vdev=xvdb,target={}", image.display())]);
    for dev in ["xvda", "xvdb"] {
        let mut client = Nbd::connect(&machine.dir().join(format!("web/{dev}.nbd"))).unwrap();
        (0..10).for_each(|block| assert_eq!(client.read(block).unwrap(), [0; BLOCK]));
    }
    let domains = json(&machine, &["list", "--json"]);
    assert_eq!((&domains[0]["name"], &domains[0]["stats"]), (&"Domain-0".into(), &serde_json::json!({})));
    for turns in ["store", "broker", "vbd", "vif"] {
        let longest = domains[0]["longest_turn_us"][turns].as_u64();
        assert!(longest.is_some_and(|longest| longest > 0), "{turns}: {longest:?}");
    }
    let total = &domains[1]["stats"]["vbd"];
    assert_eq!((&total["devices"], requests(total, "read")), (&2.into(), 20), "{total}");
    machine.ok(["block-detach", "web", "xvdb"]);
    eventually("the removed disk is no longer counted", || {
        let total = &json(&machine, &["list", "web", "--json"])[0]["stats"]["vbd"];
        (&total["devices"], requests(total, "read")) == (&1.into(), 10)
    });
}

#[test]
fn vifs_counters_grow_while_frames_cross() {
    let machine = Machine::new();
    let [alice, _bob] = two_guests(&machine);
    let stats = |guest| json(&machine, &["network-list", guest, "--json"])[0]["stats"].clone();
    let before = [stats("alice"), stats("bob")];
    run(alice.program("ping", "iputils-ping").args(["-c", "20", "-i", "0.05", "-W", "5", "10.77.0.2"]));
    for (guest, before) in ["alice", "bob"].into_iter().zip(before) {
        let after = stats(guest);
        for operation in ["transmit", "receive"] {
            assert!(requests(&after, operation) >= requests(&before, operation) + 20, "{after}");
            let bytes = |stats: &Value| stats["operations"][operation]["bytes"].as_u64().unwrap();
            assert!(bytes(&after) >= bytes(&before) + 20 * 98, "{after}");
        }
        assert!(after["grants"]["copied"].as_u64() > before["grants"]["copied"].as_u64(), "{after}");
        let events = |stats: &Value, kind: &str| stats["notifications"][kind].as_u64().unwrap();
        assert!(events(&after, "received") > events(&before, "received"), "{after}");
        assert!(events(&after, "sent") > events(&before, "sent"), "{after}");
        assert_eq!(after["drops"]["no_room"], 0);
    }
}

/// A machine whose hypervisor and dom0 are started by the test.
struct Parts {
    dom0: Option<Guard>,
    _hypervisor: Guard,
    directory: tempfile::TempDir,
}

impl Parts {
    fn start() -> Parts {
        let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
        let hypervisor = start(directory.path(), &["hypervisor"]);
        let mut parts = Parts { dom0: None, _hypervisor: hypervisor, directory };
        parts.start_dom0();
        parts
    }

    fn start_dom0(&mut self) {
        self.dom0 = Some(start(self.directory.path(), &["dom0", "--no-bridge"]));
    }

    fn xpv(&self, args: &[&str]) -> (String, String) {
        let output = command(self.directory.path()).args(args).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{args:?}: {stderr}");
        (stdout, stderr)
    }

    /// The guest's only disk in the output of block-list, and what that wrote to standard error.
    fn disk(&self) -> (Value, String) {
        let (stdout, stderr) = self.xpv(&["block-list", "web", "--json"]);
        (serde_json::from_str::<Value>(&stdout).unwrap()[0].clone(), stderr)
    }
}

/// Starts a process of the machine in a directory, and waits until it is ready.
fn start(dir: &Path, args: &[&str]) -> Guard {
    let mut command = command(dir);
    let mut child = Guard(command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{args:?}");
    child
}

#[test]
fn disks_are_listed_without_counters_while_dom0_is_stuck_or_gone() {
    let mut parts = Parts::start();
    let image = parts.directory.path().join("a.img");
    std::fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    let cfg = parts.directory.path().join("web.cfg");
    std::fs::write(&cfg, format!("name='web'\ndisk=['vdev=xvda,target={}']", image.display())).unwrap();
    parts.xpv(&["create", cfg.to_str().unwrap()]);
    let (served, stderr) = parts.disk();
    assert!(served["stats"].is_object() && stderr.is_empty(), "{served} {stderr}");

    let signal = |dom0: &Guard, signal| kill(Pid::from_raw(dom0.0.id().cast_signed()), signal).unwrap();
    signal(parts.dom0.as_ref().unwrap(), Signal::SIGSTOP);
    let started = Instant::now();
    let (stuck, stderr) = parts.disk();
    assert!(
        stderr.contains("dom0 does not answer") && started.elapsed() < Duration::from_secs(15),
        "{stderr}"
    );
    assert_eq!((&stuck["stats"], &stuck["state"]), (&Value::Null, &4.into()));

    drop(parts.dom0.take());
    let socket = parts.directory.path().join("control.sock");
    assert!(socket.exists(), "it was killed");
    let (gone, stderr) = parts.disk();
    assert_eq!((&gone["stats"], &gone["error"], stderr.as_str()), (&Value::Null, &Value::Null, ""));
    assert_eq!(gone["backend_path"], served["backend_path"]);
    let (list, stderr) = parts.xpv(&["list", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[1]["name"], &list[1]["stats"], stderr.as_str()), (&"web".into(), &Value::Null, ""));

    // Its successor takes the socket's place.
    parts.start_dom0();
    eventually("the disk is served again", || parts.disk().0["stats"].is_object());
    let dom0 = parts.dom0.take().unwrap();
    signal(&dom0, Signal::SIGTERM);
    eventually("the socket is removed", || !socket.exists());
}

#[test]
fn control_socket_is_private_and_speaks_json_lines() {
    let machine = web();
    let metadata = std::fs::metadata(machine.dir().join("control.sock")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let reply = ask(&machine, r#"{"version":1,"command":"stats","kind":"vbd","devid":51712}"#);
    assert_eq!(
        (&reply["version"], &reply["ok"]["domid"], &reply["ok"]["next"]),
        (&1.into(), &0.into(), &Value::Null)
    );
    let device = &reply["ok"]["devices"][0];
    assert_eq!(
        (&device["kind"], &device["devid"], &device["error"]),
        (&"vbd".into(), &51712.into(), &Value::Null)
    );
    let message = |line| ask(&machine, line)["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(message(r#"{"version":3,"command":"stats"}"#), "version: found 3, expected 1");
    assert!(
        message(r#"{"version":1,"command":"halt"}"#)
            .contains("\"halt\", expected stats, totals, image, bridge or capture")
    );
    assert!(message("hello").contains("not JSON"));
}

#[test]
fn hostile_clients_hold_up_neither_others_nor_the_disks() {
    let machine = web();
    let silent: Vec<UnixStream> = (0..200).map(|_| connect(&machine)).collect();
    let mut slow = connect(&machine);
    let mut deaf = connect(&machine);
    deaf.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    let many = "{\"version\":1,\"command\":\"stats\"}\n".repeat(1000);
    let mut client = Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap();
    for block in 0..50 {
        // Each of them may have been closed by now.
        let _ = slow.write_all(b"{");
        let _ = deaf.write_all(many.as_bytes());
        let _ = connect(&machine).write_all(&[0xff; 100_000]);
        client.read(block).unwrap();
        let asked = Instant::now();
        let stats = disk_stats(&machine);
        assert!(requests(&stats, "read") > block, "{stats}");
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    drop(silent);
    // Its time is up long before the bound.
    let _ = slow.read_to_end(&mut Vec::new());
    assert!(disk_stats(&machine).is_object());
}

#[test]
fn listing_of_a_xen_host_elsewhere_names_what_is_missing() {
    if Path::new("/dev/xen/xenbus").exists() {
        return println!("SKIPPED: listing without a Xen host: this is one");
    }
    let machine = web();
    for args in [&["list", "--xen"][..], &["block-list", "web", "--xen"], &["network-list", "web", "--xen"]] {
        let error = machine.fails(args);
        assert!(error.contains("/dev/xen/xenbus"), "{error}");
    }
}

#[test]
fn attach_that_times_out_says_what_dom0_waits_for() {
    let machine = web();
    let other = machine.image("b.img", 8 * MIB);
    // The lock's process, flock(1), exits at once: who has the file is not known then, and may be about to close it.
    let mut shell = Command::new("sh");
    let holder = shell.args(["-c", "exec 9<\"$0\"; flock 9; echo locked; read end"]).arg(&other);
    let mut holder = Guard(holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut locked = String::new();
    BufReader::new(holder.0.stdout.take().unwrap()).read_line(&mut locked).unwrap();
    let target = format!("vdev=xvdb,target={}", other.display());
    let error = machine.fails(["block-attach", "--timeout", "1", "web", &target]);
    let expected =
        "not connected within 1 s: disk xvdb (frontend Initialising, backend Initialising; waits: ";
    assert!(error.contains(expected) && error.contains("b.img"), "{error}");
    assert_eq!(json(&machine, &["block-list", "web", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn processes_have_the_programs_name_and_a_machine_needs_no_description() {
    let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
    let mut up = command(&directory.path().join("run"));
    let mut up = Guard(up.arg("up").stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(up.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = up.0.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children: Vec<_> = children.split_ascii_whitespace().collect();
    assert!(children.len() >= 2, "{children:?}");
    for child in children {
        assert_eq!(std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap(), "xpv\n");
    }
}
