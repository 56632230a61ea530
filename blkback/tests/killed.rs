//! A backend's process killed repeatedly while a guest writes: no write is lost.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use blkback::VbdDriver;
use hypervisor::local::Domain;
use nix::sys::eventfd::EventFd;
use ring_abi::DomId;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::sync::Arc;
use testkit::block::{GUEST, XVDA, open, options};
use testkit::random::bytes;
use testkit::{BOUND, Machine};
use xenstore::Client;

const DIR: &str = "XPV_TEST_BACK_DIR";

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

/// A backend process, killed when it is dropped.
struct BackendProcess(Child);

impl BackendProcess {
    fn start(machine: &Machine) -> BackendProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, machine.sandbox.dir())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("serving")), "the child does not serve");
        BackendProcess(child)
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn killed_backend_loses_no_write() {
    const PAGES: u64 = 64;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGES * 4096).unwrap();
    // This process must not have it open for writing.
    let file = file.into_temp_path();
    let machine = Machine::new();
    machine.attach_disk(GUEST, XVDA, file.to_str().unwrap());
    let guest = machine.domain(GUEST);
    let mut back = Some(BackendProcess::start(&machine));
    let mut disk = open(&guest, options());
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let thread = std::thread::spawn(move || {
        while count.load(Ordering::Relaxed) < 5000 {
            let n = count.load(Ordering::Relaxed);
            disk.write_at(n % PAGES * 4096, &bytes(n, 4096)).unwrap();
            count.store(n + 1, Ordering::Relaxed);
        }
        disk
    });
    for round in 1..=4 {
        let start = std::time::Instant::now();
        while written.load(Ordering::Relaxed) < round * 1000 && !thread.is_finished() {
            assert!(start.elapsed() < BOUND, "no progress within {BOUND:?} in round {round}");
            std::thread::yield_now();
        }
        drop(back.take());
        back = Some(BackendProcess::start(&machine));
    }
    let mut disk = thread.join().unwrap();
    disk.flush().unwrap();
    let content = std::fs::read(&file).unwrap();
    let last = written.load(Ordering::Relaxed);
    for n in last - PAGES..last {
        let at = (n % PAGES * 4096) as usize;
        assert!(content[at..at + 4096] == bytes(n, 4096), "write {n}");
    }
    disk.close().unwrap();
}
