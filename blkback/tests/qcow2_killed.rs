//! The process that serves a qcow2 image, killed repeatedly while a guest writes: what the guest was answered is there, whether it was
//! flushed or not, and the image is consistent but for leaks. `XPV_KILLS` sets how often it is killed.

#[path = "qcow2/common.rs"]
mod common;

use blkback::VbdDriver;
use common::{Dir, check_killed, content, create, pattern};
use hypervisor::local::Domain;
use nix::sys::eventfd::EventFd;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_abi::DomId;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use testkit::block::{GUEST, XVDA, open, options};
use testkit::environment::number;
use testkit::{BOUND, Machine};
use xenstore::Client;

const DIR: &str = "XPV_TEST_QCOW2_DIR";
/// Parts of 4 KiB of the disk.
const PARTS: u64 = 4096;

/// The backend process of the test below. Run as a test, without the environment variable, it returns at once.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let hv = Arc::new(Domain::join(dir, DomId::DOM0).unwrap());
    let client = Client::connect(&hv).unwrap();
    let stop = EventFd::new().unwrap();
    println!("serving");
    xenbus::driver::run(client, DomId::DOM0, &mut VbdDriver::new(hv.clone(), hv), stop.as_fd()).unwrap();
}

fn start(machine: &Machine) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, machine.sandbox.dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("serving")), "the child does not serve");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_backend_loses_no_write_that_allocates() {
    let kills: u64 = number("XPV_KILLS").unwrap_or(6);
    let dir = Dir::new();
    let base = pattern(0..PARTS * 8, 1 << 19);
    std::fs::write(dir.path("base"), &base).unwrap();
    let (middle, image) = (dir.path("middle"), dir.path("image"));
    create(&middle, "16M", &["-b", "base", "-F", "raw"]);
    create(&image, "16M", &["-o", "cluster_size=8192", "-b", "middle", "-F", "qcow2"]);
    let machine = Machine::new();
    machine.attach_disk(GUEST, XVDA, &format!("qcow2:{}", image.display()));
    let guest = machine.domain(GUEST);
    let mut back = start(&machine);
    let mut disk = open(&guest, options());
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let thread = std::thread::spawn(move || {
        let mut random = SmallRng::seed_from_u64(1);
        let mut model = base;
        // Each round has its kill.
        while count.load(Ordering::Relaxed) < (kills + 1) * 200 {
            let n = count.load(Ordering::Relaxed) + 1;
            let part = random.random_range(0..PARTS);
            let data = pattern(part * 8..part * 8 + 8, n);
            disk.write_at(part * 4096, &data).unwrap();
            model[part as usize * 4096..][..4096].copy_from_slice(&data);
            if n.is_multiple_of(64) {
                disk.flush().unwrap();
            }
            count.store(n, Ordering::Relaxed);
        }
        let mut read = vec![0; 4096];
        for part in 0..PARTS {
            disk.read_at(part * 4096, &mut read).unwrap();
            assert!(read == model[part as usize * 4096..][..4096], "part {part}");
        }
        disk.flush().unwrap();
        (disk, model)
    });
    let mut random = SmallRng::seed_from_u64(2);
    for round in 0..kills {
        let until = round * 200 + random.random_range(50..200);
        let start_of_round = std::time::Instant::now();
        while written.load(Ordering::Relaxed) < until && !thread.is_finished() {
            assert!(start_of_round.elapsed() < BOUND, "no progress within {BOUND:?} in round {round}");
            std::thread::yield_now();
        }
        kill(back);
        check_killed(&image);
        back = start(&machine);
    }
    let (disk, model) = thread.join().unwrap();
    kill(back);
    drop(disk);
    check_killed(&image);
    assert!(content(&image) == model);
}
