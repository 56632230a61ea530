//! SIGKILL to a guest or to dom0 at random moments, while disks are written: no acknowledged write is lost, other guests
//! are served, the guest's name can be used again at once, and no resources of the killed process remain.
//!
//! The seed is printed; `XPV_TEST_SEED` sets it. The writer of the killed guest's disk is an NBD client of this test, as
//! fio's NBD engine waits forever for the reply of a killed server.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::program::{program, run};
use common::{BOUND, Machine, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use testkit::StopOnDrop;
use testkit::nbd::{BLOCK, Nbd};

const MIB: u64 = 1 << 20;
const ROUNDS: u64 = 20;
/// Blocks of the victim's disk that are written repeatedly.
const BLOCKS: u64 = 512;
/// Writes in flight.
const DEPTH: usize = 16;

#[test]
fn guests_and_dom0_killed_at_any_moment_lose_no_acknowledged_write() {
    let machine = Machine::new();
    let steady = machine.image("steady.img", 16 * MIB);
    let victim = machine.image("victim.img", BLOCKS * BLOCK as u64);
    machine.create("steady", &format!("disk=['vdev=xvda,target={}']", steady.display()));
    let disk = format!("disk=['vdev=xvda,target={}']", victim.display());
    machine.create("victim", &disk);
    let seed = std::env::var("XPV_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("XPV_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut victims: Vec<bool> = (0..ROUNDS).map(|round| round % 2 == 0).collect();
    victims.shuffle(&mut random);
    let before = Resources::of(&machine).expect("dom0 runs");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let verifier = scope.spawn(|| verify_until(&machine, &stop));
        let mut written = Written::default();
        for (round, dom0) in victims.into_iter().enumerate() {
            let moment = Duration::from_millis(random.random_range(5..150));
            println!(
                "round {round}: {} is killed after {moment:?}",
                if dom0 { "dom0" } else { "the victim" }
            );
            if dom0 {
                kill_dom0(&machine, &mut written, moment);
            } else {
                kill_victim(&machine, &mut written, moment, &disk);
            }
            before.assert_not_exceeded(&machine);
        }
        let mut client = Nbd::connect(&machine.dir().join("victim/xvda.nbd")).unwrap();
        written.check(&mut client);
        drop(stop_on_drop);
        let rounds = verifier.join().unwrap();
        assert!(rounds > 0, "fio verified nothing");
    });
    assert_no_nodes_remain(&machine);
}

/// Writes and verifies another guest's disk with fio until `stop` is set; returns the number of rounds.
fn verify_until(machine: &Machine, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut fio = program("fio", "fio");
        fio.args([
            "--name=steady",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=16m",
        ]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
        run(fio.arg(format!("--uri={}", machine.nbd("steady", "xvda"))));
        rounds += 1;
    }
    rounds
}

/// What was written to each block last, and what is known to be there.
struct Written {
    sent: Vec<u64>,
    acknowledged: Vec<u64>,
    version: u64,
}

impl Default for Written {
    fn default() -> Written {
        Written { sent: vec![0; BLOCKS as usize], acknowledged: vec![0; BLOCKS as usize], version: 0 }
    }
}

impl Written {
    /// Writes blocks for `duration` and then waits until all are acknowledged. Fails if the connection ends.
    fn write(&mut self, client: &mut Nbd, duration: Duration) -> std::io::Result<()> {
        let start = Instant::now();
        let mut in_flight = 0;
        loop {
            while in_flight < DEPTH && start.elapsed() < duration {
                self.version += 1;
                let block = self.version % BLOCKS;
                self.sent[block as usize] = self.version;
                client.send_write(block, &content(block, self.version))?;
                in_flight += 1;
            }
            if in_flight == 0 {
                return Ok(());
            }
            let block = client.written()? as usize;
            // A block has at most one write in flight: there are more blocks than writes in flight.
            self.acknowledged[block] = self.sent[block];
            in_flight -= 1;
        }
    }

    /// Asserts that each block holds the version acknowledged last, or the one sent after it.
    fn check(&mut self, client: &mut Nbd) {
        for block in 0..BLOCKS {
            let at = block as usize;
            let read = client.read(block).unwrap();
            let version = u64::from_le_bytes(read[..8].try_into().unwrap());
            assert!(read == content(block, version) || version == 0, "block {block} is torn");
            let allowed = [self.acknowledged[at], self.sent[at]];
            assert!(
                allowed.contains(&version),
                "block {block}: version {version}, expected one of {allowed:?}"
            );
            self.acknowledged[at] = version;
            self.sent[at] = version;
        }
    }
}

fn content(block: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [(block ^ version) as u8; BLOCK];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..16].copy_from_slice(&block.to_le_bytes());
    bytes
}

fn kill_now(machine: &Machine, domain: &str) {
    let pid = machine.pid(domain).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Kills dom0 while blocks are written: the next dom0 answers the writes.
fn kill_dom0(machine: &Machine, written: &mut Written, moment: Duration) {
    eventually("dom0 runs again", || machine.pid("Domain-0").is_some());
    let mut client = Nbd::connect(&machine.dir().join("victim/xvda.nbd")).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| written.write(&mut client, moment * 2));
        thread::park_timeout(moment);
        kill_now(machine, "Domain-0");
        writer.join().unwrap().unwrap();
    });
    written.check(&mut client);
}

/// Kills the guest while blocks are written: a new guest reads the acknowledged ones.
fn kill_victim(machine: &Machine, written: &mut Written, moment: Duration, disk: &str) {
    eventually("dom0 runs again", || machine.pid("Domain-0").is_some());
    let socket = machine.dir().join("victim/xvda.nbd");
    let mut client = Nbd::connect(&socket).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| written.write(&mut client, Duration::MAX));
        thread::park_timeout(moment);
        kill_now(machine, "victim");
        writer.join().unwrap().unwrap_err();
    });
    machine.create("victim", disk);
    written.check(&mut Nbd::connect(&socket).unwrap());
}

/// Asserts that killed domains are neither listed nor have nodes in the store.
fn assert_no_nodes_remain(machine: &Machine) {
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["list", "--json"])).unwrap();
    let domains: Vec<u64> = list.as_array().unwrap().iter().map(|d| d["domid"].as_u64().unwrap()).collect();
    assert_eq!(domains.len(), 3, "{list}");
    eventually("the nodes of killed domains are removed", || {
        let nodes = machine.nodes();
        nodes.iter().filter(|(_, value)| !value.is_empty()).all(|(path, _)| {
            let of = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.split('/').next());
            let owner = of("/local/domain/0/backend/vbd/").or(of("/local/domain/")).or(of("/libxl/"));
            owner.is_none_or(|owner| domains.iter().any(|domid| owner == domid.to_string()))
        })
    });
}

/// Resources of the processes that serve guests: granted memory is mappings and descriptors, channels are descriptors.
#[derive(Debug)]
struct Resources {
    hypervisor: Process,
    dom0: Process,
}

#[derive(Debug)]
struct Process {
    descriptors: usize,
    /// Mappings of arenas.
    arenas: usize,
}

impl Resources {
    /// `None` while dom0 does not run.
    fn of(machine: &Machine) -> Option<Resources> {
        let dom0 = Process::of(machine.pid("Domain-0")?)?;
        Some(Resources { hypervisor: Process::of(machine.hypervisor())?, dom0 })
    }

    /// Waits until the processes hold no more than these, as they did before others were killed.
    fn assert_not_exceeded(&self, machine: &Machine) {
        let mut now = None;
        let start = Instant::now();
        while !now.as_ref().is_some_and(|now: &Resources| {
            now.hypervisor.is_within(&self.hypervisor) && now.dom0.is_within(&self.dom0)
        }) {
            assert!(start.elapsed() < BOUND, "{self:?} before, now {now:?}");
            thread::park_timeout(Duration::from_millis(5));
            now = Resources::of(machine);
        }
    }
}

impl Process {
    fn of(pid: i32) -> Option<Process> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        Some(Process {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            arenas: maps.lines().filter(|line| line.contains("xpv-arena")).count(),
        })
    }

    fn is_within(&self, other: &Process) -> bool {
        self.descriptors <= other.descriptors && self.arenas <= other.arenas
    }
}
