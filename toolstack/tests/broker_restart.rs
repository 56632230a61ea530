//! SIGKILL to `xpv hypervisor`, the broker and the store: disks and interfaces work on, and the next one goes on with the machine
//! as it was.
//!
//! The seed is printed; `XPV_TEST_SEED` sets it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::netns::two_guests;
use common::{BOUND, Guard, Machine, command, eventually, texts};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use testkit::StopOnDrop;
use testkit::nbd::{BLOCK, Nbd};
use xenstore::Nodes;

const MIB: u64 = 1 << 20;
const ROUNDS: u32 = 20;
/// Blocks that are written repeatedly.
const BLOCKS: u64 = 256;

fn random() -> SmallRng {
    let seed = std::env::var("XPV_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("XPV_TEST_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The process of the broker and store; `None` while there is none.
fn hypervisor(dir: &Path) -> Option<i32> {
    let stream = UnixStream::connect(dir.join("xenstored.sock")).ok()?;
    Some(getsockopt(&stream, PeerCredentials).ok()?.pid())
}

/// Kills the hypervisor; returns its process id.
fn kill_hypervisor(dir: &Path) -> i32 {
    let mut pid = None;
    eventually("the hypervisor runs", || {
        pid = hypervisor(dir);
        pid.is_some()
    });
    let pid = pid.unwrap();
    signal(pid, Signal::SIGKILL);
    pid
}

/// Waits for the successor of a hypervisor, until it serves.
fn await_successor(machine: &Machine, killed: i32) {
    eventually("the hypervisor is restarted", || {
        hypervisor(&machine.dir()).is_some_and(|pid| pid != killed) && machine.xpv(["list"]).status.success()
    });
}

fn list(machine: &Machine) -> Vec<(String, Option<u64>)> {
    let list: Value = serde_json::from_str(&machine.ok(["list", "--json"])).unwrap();
    let rows = list.as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["pid"].as_u64())).collect()
}

fn disk_config(image: &Path) -> String {
    format!("disk=['vdev=xvda,target={}']", image.display())
}

fn content(block: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [(block ^ version) as u8; BLOCK];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// Writes and reads blocks of a disk until `stop` is set; `rounds` counts how often all were verified.
fn verify_disk(socket: &Path, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut client = Nbd::connect(socket).unwrap();
    for version in 1.. {
        for block in 0..BLOCKS {
            client.send_write(block, &content(block, version)).unwrap();
            if block % 16 == 15 {
                for _ in 0..16 {
                    client.written().unwrap();
                }
            }
        }
        for block in 0..BLOCKS {
            assert!(client.read(block).unwrap() == content(block, version), "block {block} of {version}");
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Sends numbers over a connection until `stop` is set.
fn send_numbers(mut stream: TcpStream, stop: &AtomicBool) {
    let mut next = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let bytes: Vec<u8> = (next..next + 512).flat_map(u64::to_le_bytes).collect();
        next += 512;
        stream.write_all(&bytes).unwrap();
    }
}

/// Checks the numbers that arrive until the connection ends; `received` counts them.
fn check_numbers(stream: TcpStream, received: &AtomicU64) {
    let mut stream = BufReader::new(stream);
    let mut bytes = [0; 8];
    for expected in 0u64.. {
        match stream.read_exact(&mut bytes) {
            Ok(()) => assert_eq!(u64::from_le_bytes(bytes), expected),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
            Err(error) => panic!("{error}"),
        }
        received.store(expected, Ordering::Relaxed);
    }
}

#[test]
fn hypervisor_killed_twenty_times_under_io_loses_nothing() {
    let mut random = random();
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let image = machine.image("disk.img", BLOCKS * BLOCK as u64);
    machine.create("disk", &disk_config(&image));
    machine.image("more.img", MIB);
    let before = list(&machine);
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = AtomicU64::new(0);
    let received = Arc::new(AtomicU64::new(0));
    let listener = bob.spawn(|| TcpListener::bind("10.77.0.2:0").unwrap()).join().unwrap();
    let address = listener.local_addr().unwrap();
    let stop_of_sender = stop.clone();
    let sender = alice.spawn(move || send_numbers(TcpStream::connect(address).unwrap(), &stop_of_sender));
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let received_of_thread = received.clone();
    let receiver = thread::spawn(move || check_numbers(stream, &received_of_thread));
    thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let socket = machine.dir().join("disk/xvda.nbd");
        let (stop, rounds) = (&*stop, &rounds);
        let verifier = scope.spawn(move || verify_disk(&socket, stop, rounds));
        for round in 0..ROUNDS {
            let moment = Duration::from_millis(random.random_range(1..100));
            println!("round {round}: killed after {moment:?}");
            thread::park_timeout(moment);
            let counts = || (rounds.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
            let at_kill = counts();
            let killed = kill_hypervisor(&machine.dir());
            await_successor(&machine, killed);
            assert_eq!(list(&machine), before, "round {round}");
            eventually("disk and interface work on", || {
                let now = counts();
                now.0 > at_kill.0 && now.1 > at_kill.1
            });
            manage(&machine, round);
        }
        drop(stop_on_drop);
        verifier.join().unwrap();
    });
    sender.join().unwrap();
    receiver.join().unwrap();
    assert_eq!(list(&machine), before);
    let log = machine.log();
    assert_eq!(log.matches("the hypervisor exited; restarting it").count(), ROUNDS as usize);
    assert!(!log.contains(" ERROR "), "{log}");
}

/// What a successor has to serve: attach, detach, create, destroy.
fn manage(machine: &Machine, round: u32) {
    let more = format!("{},raw,xvdb,rw", machine.path("more.img").display());
    let attached = machine.xpv(["block-attach", "disk", &more]);
    let log = || fs::read_to_string(machine.dir().join("disk/log")).unwrap_or_default();
    assert!(attached.status.success(), "{attached:?}\nthe guest's log:\n{}", log());
    assert_eq!(Nbd::connect(&machine.dir().join("disk/xvdb.nbd")).unwrap().size(), MIB);
    eventually("the client's end is noticed", || {
        machine.xpv(["block-detach", "disk", "xvdb"]).status.success()
    });
    if round.is_multiple_of(4) {
        let image = machine.image("other.img", MIB);
        machine.create("other", &format!("{}\nvif=['mac=00:16:3e:00:00:77']", disk_config(&image)));
        assert_eq!(Nbd::connect(&machine.dir().join("other/xvda.nbd")).unwrap().size(), MIB);
        machine.ok(["destroy", "other"]);
    }
}

#[test]
fn guest_whose_creation_the_end_of_the_hypervisor_interrupts_exists_or_leaves_nothing() {
    let mut random = random();
    let machine = Machine::new();
    let image = machine.image("web.img", MIB);
    let cfg = machine.file("web.cfg", &format!("name='web'\n{}\n", disk_config(&image)));
    let mut outcomes = [0, 0];
    for round in 0..15 {
        let mut create = command(&machine.dir());
        create.arg("create").arg(&cfg).stdout(Stdio::null()).stderr(Stdio::piped());
        let create = create.spawn().unwrap();
        // Creating takes about fifty milliseconds.
        let moment = Duration::from_millis(random.random_range(0..70));
        println!("round {round}: killed after {moment:?}");
        thread::park_timeout(moment);
        let killed = kill_hypervisor(&machine.dir());
        let output = create.wait_with_output().unwrap();
        await_successor(&machine, killed);
        let created = output.status.success();
        outcomes[usize::from(created)] += 1;
        let (_, stderr) = texts(&output);
        if created {
            eventually("the guest runs", || machine.pid("web").is_some());
        } else {
            eventually(&format!("nothing is left: {stderr}"), || is_gone(&machine));
            machine.ok([Path::new("create"), &cfg]);
        }
        assert_eq!(Nbd::connect(&machine.dir().join("web/xvda.nbd")).unwrap().size(), MIB);
        machine.ok(["destroy", "web"]);
        eventually("its nodes are removed", || is_gone(&machine));
    }
    println!("{outcomes:?} creations failed and succeeded");
}

/// Whether there is neither a guest nor a node of one.
fn is_gone(machine: &Machine) -> bool {
    let store = &mut machine.store();
    let mut left = |path: &str| !store.directory(path).unwrap_or_default().is_empty();
    list(machine).len() == 1
        && !left("/libxl")
        && !left("/local/domain/0/backend/vbd")
        && !left("/vm")
        && store.directory("/local/domain").unwrap() == ["0"]
}

#[test]
fn domains_that_die_while_there_is_no_hypervisor_are_noticed_by_the_next() {
    let machine = Machine::new();
    let image = machine.image("a.img", BLOCKS * BLOCK as u64);
    machine.create("steady", &disk_config(&image));
    let image = machine.image("b.img", MIB);
    machine.create("victim", &disk_config(&image));
    let socket = machine.dir().join("steady/xvda.nbd");
    let mut client = Nbd::connect(&socket).unwrap();
    client.send_write(1, &content(1, 1)).unwrap();
    client.written().unwrap();
    let victim = machine.pid("victim").unwrap();
    let dom0 = machine.pid("Domain-0").unwrap();
    // Nothing is restarted meanwhile.
    signal(machine.supervisor(), Signal::SIGSTOP);
    let killed = kill_hypervisor(&machine.dir());
    eventually("there is no hypervisor", || hypervisor(&machine.dir()).is_none());
    assert!(client.read(1).unwrap() == content(1, 1), "the disk works without a hypervisor");
    signal(victim, Signal::SIGKILL);
    signal(dom0, Signal::SIGKILL);
    client.send_write(2, &content(2, 2)).unwrap();
    signal(machine.supervisor(), Signal::SIGCONT);
    await_successor(&machine, killed);
    // dom0 was restarted too, and answers what was in flight.
    client.written().unwrap();
    assert!(client.read(2).unwrap() == content(2, 2));
    eventually("the guest is removed", || list(&machine).iter().all(|(name, _)| name != "victim"));
    machine.create("victim", &disk_config(&image));
    machine.ok(["destroy", "victim"]);
}

#[test]
fn guest_that_does_not_come_back_in_time_is_removed_and_delays_the_others_for_a_while_only() {
    let machine = Machine::new();
    let image = machine.image("a.img", MIB);
    machine.create("stuck", &disk_config(&image));
    let stuck = machine.pid("stuck").unwrap();
    signal(stuck, Signal::SIGSTOP);
    let killed = kill_hypervisor(&machine.dir());
    await_successor(&machine, killed);
    eventually("the guest is removed", || list(&machine).iter().all(|(name, _)| name != "stuck"));
    signal(stuck, Signal::SIGCONT);
    let status = PathBuf::from(format!("/proc/{stuck}"));
    eventually("its process sees that and exits", || !status.exists());
    machine.create("stuck", &disk_config(&image));
}

/// Starts a process of the machine in a directory, and waits until it is ready.
fn start(dir: &Path, log: &Path, args: &[&str]) -> Guard {
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = command(dir);
    let mut child = Guard(command.args(args).stdout(Stdio::piped()).stderr(log).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{args:?}");
    child
}

/// The files by which a hypervisor is succeeded.
fn state(dir: &Path) -> [PathBuf; 2] {
    ["domains.state", "store.state"].map(|name| dir.join(name))
}

#[test]
fn hypervisor_started_by_hand_takes_over_and_a_stopped_one_leaves_nothing() {
    let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
    let log = directory.path().join("log");
    let run = directory.path().join("run");
    let xpv = |args: &[&str]| {
        let output = command(&run).args(args).output().unwrap();
        (output.status.success(), texts(&output))
    };
    let mut first = start(&run, &log, &["hypervisor"]);
    let mut dom0 = start(&run, &log, &["dom0", "--no-bridge"]);
    let image = directory.path().join("a.img");
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    let cfg = directory.path().join("web.cfg");
    fs::write(&cfg, format!("name='web'\n{}", disk_config(&image))).unwrap();
    let (created, output) = xpv(&["create", cfg.to_str().unwrap()]);
    assert!(created, "{output:?}");
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(!xpv(&["list"]).0, "there is no hypervisor");
    let second = start(&run, &log, &["hypervisor"]);
    assert!(dom0.0.try_wait().unwrap().is_none(), "dom0 has ended");
    let (_, (listed, _)) = xpv(&["list"]);
    assert!(listed.contains("web"), "{listed}");
    // The store's state is damaged: neither part is used, and who waits for it ends.
    drop(second);
    let [domains, store] = state(&run);
    let len = fs::metadata(&store).unwrap().len();
    let file = fs::File::options().write(true).open(&store).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damaged", len / 2).unwrap();
    let third = start(&run, &log, &["hypervisor"]);
    eventually("dom0 ends with its machine", || dom0.0.try_wait().unwrap().is_some());
    let (_, (listed, _)) = xpv(&["list"]);
    assert!(!listed.contains("web"), "{listed}");
    assert!(fs::read_to_string(&log).unwrap().contains("the store of a hypervisor that was killed is lost"));
    let mut dom0 = start(&run, &log, &["dom0", "--no-bridge"]);
    assert!(domains.exists() && store.exists());
    signal(third.0.id().cast_signed(), Signal::SIGTERM);
    eventually("dom0 ends with its machine", || dom0.0.try_wait().unwrap().is_some());
    eventually("a stopped machine leaves no state", || !domains.exists() && !store.exists());
}
