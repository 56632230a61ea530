//! SIGKILL, at moments from a seed, to a guest and to dom0, while disks are written: no acknowledged write is lost,
//! others are served on, and a name is free at once.

mod common;
#[path = "common/nbd.rs"]
mod nbd;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::program::{program, run};
use common::{Machine, eventually};
use nbd::{BLOCK, Nbd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const MIB: u64 = 1 << 20;
const ROUNDS: u64 = 20;
/// Blocks that the victim writes over and over.
const BLOCKS: u64 = 512;
/// Writes under way.
const DEPTH: usize = 16;

/// Ends the other threads, also where the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn guests_and_dom0_killed_at_any_moment_lose_no_acknowledged_write() {
    let machine = Machine::new();
    let (steady, victim) =
        (machine.image("steady.img", 16 * MIB), machine.image("victim.img", BLOCKS * BLOCK as u64));
    machine.create("steady", &format!("disk=['vdev=xvda,target={}']", steady.display()));
    let disk = format!("disk=['vdev=xvda,target={}']", victim.display());
    machine.create("victim", &disk);
    let mut random = SmallRng::seed_from_u64(20261120);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ends = Ends(&over);
        let verifier = scope.spawn(|| verify_until(&machine, &over));
        let mut written = Written::default();
        for round in 0..ROUNDS {
            let moment = Duration::from_millis(random.random_range(5..150));
            if round % 2 == 0 {
                kill_dom0(&machine, &mut written, moment);
            } else {
                kill_victim(&machine, &mut written, moment, &disk);
            }
        }
        let mut client = Nbd::connect(&machine.dir().join("victim/xvda.nbd")).unwrap();
        written.check(&mut client);
        drop(ends);
        let turns = verifier.join().unwrap();
        assert!(turns > 0, "fio did not get through once");
    });
    nothing_is_left(&machine);
}

/// Has fio write and verify another guest's disk, again and again.
fn verify_until(machine: &Machine, over: &AtomicBool) -> u32 {
    let mut turns = 0;
    while !over.load(Ordering::Relaxed) {
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
        turns += 1;
    }
    turns
}

/// What was written to each block last, and what is known to be there.
struct Written {
    asked: Vec<u64>,
    acknowledged: Vec<u64>,
    version: u64,
}

impl Default for Written {
    fn default() -> Written {
        Written { asked: vec![0; BLOCKS as usize], acknowledged: vec![0; BLOCKS as usize], version: 0 }
    }
}

impl Written {
    /// Writes on until `moment` has passed; all is acknowledged then. An error is the connection's end.
    fn write(&mut self, client: &mut Nbd, moment: Duration) -> std::io::Result<()> {
        let begun = Instant::now();
        let mut under_way = 0;
        loop {
            while under_way < DEPTH && begun.elapsed() < moment {
                self.version += 1;
                let block = self.version % BLOCKS;
                self.asked[block as usize] = self.version;
                client.ask_write(block, &content(block, self.version))?;
                under_way += 1;
            }
            if under_way == 0 {
                return Ok(());
            }
            let block = client.written()? as usize;
            // Each block is under way once at a time: there are more of them than writes under way.
            self.acknowledged[block] = self.asked[block];
            under_way -= 1;
        }
    }

    /// Every block holds what was acknowledged last, or what was asked after that.
    fn check(&mut self, client: &mut Nbd) {
        for block in 0..BLOCKS {
            let at = block as usize;
            let read = client.read(block).unwrap();
            let version = u64::from_le_bytes(read[..8].try_into().unwrap());
            assert!(read == content(block, version) || version == 0, "block {block} is torn");
            let allowed = [self.acknowledged[at], self.asked[at]];
            assert!(
                allowed.contains(&version),
                "block {block}: version {version}, expected one of {allowed:?}"
            );
            (self.acknowledged[at], self.asked[at]) = (version, version);
        }
    }
}

fn content(block: u64, version: u64) -> [u8; BLOCK] {
    let mut octets = [(block ^ version) as u8; BLOCK];
    octets[..8].copy_from_slice(&version.to_le_bytes());
    octets[8..16].copy_from_slice(&block.to_le_bytes());
    octets
}

fn kill_now(machine: &Machine, domain: &str) {
    let pid = machine.pid(domain).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// dom0 dies in the middle of writes: they are answered by its successor.
fn kill_dom0(machine: &Machine, written: &mut Written, moment: Duration) {
    eventually("dom0 is back", || machine.pid("Domain-0").is_some());
    let mut client = Nbd::connect(&machine.dir().join("victim/xvda.nbd")).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| written.write(&mut client, moment * 2));
        thread::park_timeout(moment);
        kill_now(machine, "Domain-0");
        writer.join().unwrap().unwrap();
    });
    written.check(&mut client);
}

/// The guest dies in the middle of writes: its successor finds what was acknowledged.
fn kill_victim(machine: &Machine, written: &mut Written, moment: Duration, disk: &str) {
    eventually("dom0 is back", || machine.pid("Domain-0").is_some());
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

/// What belonged to the dead is gone: from the list, from the store, and from the processes that served them.
fn nothing_is_left(machine: &Machine) {
    let list: serde_json::Value = serde_json::from_str(&machine.ok(["list", "--json"])).unwrap();
    let domains: Vec<u64> = list.as_array().unwrap().iter().map(|d| d["domid"].as_u64().unwrap()).collect();
    assert_eq!(domains.len(), 3, "{list}");
    eventually("the nodes of the dead are gone", || {
        let nodes = machine.nodes();
        nodes.iter().filter(|(_, value)| !value.is_empty()).all(|(path, _)| {
            let of = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.split('/').next());
            let owner = of("/local/domain/0/backend/vbd/").or(of("/local/domain/")).or(of("/libxl/"));
            owner.is_none_or(|owner| domains.iter().any(|domid| owner == domid.to_string()))
        })
    });
    let dom0 = machine.pid("Domain-0").unwrap();
    let arenas = || {
        let maps = std::fs::read_to_string(format!("/proc/{dom0}/maps")).unwrap();
        let inodes: std::collections::BTreeSet<&str> = maps
            .lines()
            .filter(|line| line.contains("xpv-arena"))
            .filter_map(|line| line.split_ascii_whitespace().nth(4))
            .collect();
        inodes.len()
    };
    // Each living guest's for dom0, and at most dom0's own for each.
    eventually("dom0 has no dead guest's pages mapped", || arenas() <= 4);
}
