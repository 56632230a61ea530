//! SIGKILL to dom0 at random moments while fio writes, reads, flushes and verifies a guest's disk of several queues: no data is lost, and
//! each stall is measured.
//!
//! `XPV_KILLS=1000 cargo test --release -p toolstack --test dom0_kills -- --nocapture` makes 1,000 kills and prints the stalls. The seed
//! is printed; `XPV_TEST_SEED` sets it. Row U1 of `benches` measures the same of a machine whose disk is otherwise idle.

mod common;

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::program::{program, run};
use common::{Guard, command, eventually, texts};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_abi::blkif::key::MULTI_QUEUE_NUM_QUEUES;
use testkit::StopOnDrop;
use testkit::environment::number;
use testkit::nbd::{BLOCK, Nbd};
use xenstore::{Client, Nodes};

/// Kills of a run that nobody asked for more.
const KILLS: usize = 20;
const MIB: u64 = 1 << 20;
/// What fio writes, from the start of the disk.
const FIO: u64 = 24 * MIB;
/// Blocks after that, which the watch writes and reads one by one.
const WATCHED: u64 = 256;
/// Completions of the watch after which a dom0 serves.
const SERVED: u32 = 4;
/// Of as many kills one hits a dom0 that may not have served yet.
const EARLY: u32 = 5;

/// The machine's processes but for the guest's, which ends with its hypervisor.
struct Machine {
    dom0: Guard,
    _hypervisor: Guard,
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let directory = tempfile::Builder::new().prefix("xpv").tempdir().unwrap();
        let hypervisor = start(directory.path(), "hypervisor");
        let dom0 = start(directory.path(), "dom0");
        Machine { dom0, _hypervisor: hypervisor, directory }
    }

    fn dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Creates a guest with a disk of zeroes; returns the socket of its export.
    fn create(&self) -> PathBuf {
        let image = self.directory.path().join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(FIO + WATCHED * BLOCK as u64).unwrap();
        let cfg = self.directory.path().join("guest.cfg");
        let text = format!("name = 'guest'\ndisk = ['vdev=xvda,target={}']\n", image.display());
        std::fs::write(&cfg, text).unwrap();
        let created = command(&self.dir()).arg("create").arg(&cfg).output().unwrap();
        assert!(created.status.success(), "{}", texts(&created).1);
        self.dir().join("guest/xvda.nbd")
    }

    /// How many queues the guest's disk has.
    fn queues(&self) -> u32 {
        let mut store = Client::open_unix(self.dir().join("xenstored.sock")).unwrap();
        let path = format!("/local/domain/1/device/vbd/51712/{MULTI_QUEUE_NUM_QUEUES}");
        store.read_opt_as(&path).unwrap().unwrap_or(1)
    }

    /// Kills dom0, and starts the next one. Does not wait until that one serves.
    fn kill_dom0(&mut self) {
        self.dom0.0.kill().unwrap();
        self.dom0.0.wait().unwrap();
        self.dom0 = spawn(self.directory.path(), "dom0");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the log ends:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

fn spawn(directory: &Path, name: &str) -> Guard {
    let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let mut command = command(&directory.join("run"));
    Guard(command.arg(name).stdout(Stdio::piped()).stderr(log).spawn().unwrap())
}

/// Starts a process, and waits until it is ready.
fn start(directory: &Path, name: &str) -> Guard {
    let mut process = spawn(directory, name);
    let mut line = String::new();
    std::io::BufReader::new(process.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{name}");
    process
}

/// What a thread sees that writes a block and reads it again, one at a time.
#[derive(Default)]
struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    count: u32,
    longest: Duration,
}

impl Watch {
    /// Writes and verifies blocks until `stop` is set.
    fn run(&self, socket: &Path, seed: u64, stop: &AtomicBool) {
        let mut client = Nbd::connect(socket).unwrap();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut versions = [0; WATCHED as usize];
        let mut version = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let [written, read] = [(), ()].map(|()| random.random_range(0..WATCHED));
            version += 1;
            versions[written as usize] = version;
            self.time(|| {
                client.send_write(FIO / BLOCK as u64 + written, &content(written, version)).unwrap();
                client.written().unwrap();
            });
            let found = self.time(|| client.read(FIO / BLOCK as u64 + read).unwrap());
            assert!(found == content(read, versions[read as usize]), "block {read} is not as written");
        }
    }

    fn time<T>(&self, operation: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = operation();
        let mut seen = self.0.lock().unwrap();
        seen.longest = seen.longest.max(start.elapsed());
        seen.count += 1;
        result
    }

    fn begin(&self) {
        *self.0.lock().unwrap() = Seen::default();
    }

    /// Waits until the disk is served again; returns the longest stall since [`Watch::begin`].
    fn await_served(&self) -> Duration {
        self.0.lock().unwrap().count = 0;
        eventually("the disk is served", || self.0.lock().unwrap().count >= SERVED);
        self.0.lock().unwrap().longest
    }
}

/// Zeroes at first.
fn content(block: u64, version: u64) -> [u8; BLOCK] {
    if version == 0 {
        return [0; BLOCK];
    }
    let mut bytes = [(block ^ version) as u8; BLOCK];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..16].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// Writes and verifies the disk by fio until `stop` is set; returns how often.
fn verify_by_fio(socket: &Path, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while rounds == 0 || !stop.load(Ordering::Relaxed) {
        let mut fio = program("fio", "fio");
        fio.args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bsrange=4k-64k", "--iodepth=32"]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64"]);
        fio.arg(format!("--randseed={rounds}")).arg(format!("--size={FIO}"));
        run(fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display())));
        rounds += 1;
    }
    rounds
}

/// The stalls of one kind of kills.
#[derive(Default)]
struct Stalls(Vec<Duration>);

impl Stalls {
    fn print(&mut self, what: &str) {
        self.0.sort();
        let Some(last) = self.0.len().checked_sub(1) else { return };
        let ms = |part: usize| self.0[last * part / 100].as_secs_f64() * 1e3;
        let [median, most, longest] = [50, 99, 100].map(ms);
        println!("{} {what}: median {median:.1} ms, p99 {most:.1} ms, longest {longest:.1} ms", last + 1);
    }
}

#[test]
fn disk_verifies_while_dom0_is_killed_at_random_moments() {
    let kills = number("XPV_KILLS").unwrap_or(KILLS);
    let seed = number("XPV_TEST_SEED").unwrap_or_else(rand::random);
    println!("XPV_TEST_SEED={seed} XPV_KILLS={kills}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut machine = Machine::new();
    let socket = machine.create();
    let processors = thread::available_parallelism().unwrap().get() as u32;
    assert_eq!(machine.queues(), processors.min(8), "a queue for each processor");
    let [mut served, mut early] = [(), ()].map(|()| Stalls::default());
    let stop = AtomicBool::new(false);
    let watch = Watch::default();
    let rounds = thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let watching = scope.spawn(|| watch.run(&socket, seed, &stop));
        let fio = scope.spawn(|| verify_by_fio(&socket, &stop));
        watch.await_served();
        for kill in 0..kills {
            let is_early = random.random_ratio(1, EARLY);
            let moment = random.random_range(0..if is_early { 50_000 } else { 100_000 });
            watch.begin();
            if is_early {
                machine.kill_dom0();
            }
            thread::park_timeout(Duration::from_micros(moment));
            if !is_early {
                watch.begin();
            }
            machine.kill_dom0();
            assert!(!watching.is_finished() && (!fio.is_finished()), "kill {kill}");
            let stall = watch.await_served();
            if is_early { early.0.push(stall) } else { served.0.push(stall) }
        }
        drop(stop_on_drop);
        watching.join().unwrap();
        fio.join().unwrap()
    });
    served.print("kills of a dom0 that served");
    early.print("of one that was killed once more within 50 ms");
    println!("fio verified the disk {rounds} times");
}
