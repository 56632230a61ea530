//! The peer of row N1: DPDK's testpmd on both sides of a vhost-user socket, a process and a core a side.
//!
//! As root, with 512 huge pages of 2 MiB (`echo 512 > /proc/sys/vm/nr_hugepages`) and Debian's package `dpdk-dev`.

use crate::missing::not_started;
use nix::unistd::geteuid;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "dpdk-testpmd";
const PACKAGE: &str = "dpdk-dev";
/// Of 2 MiB.
const HUGE_PAGES: u32 = 512;
/// Longest that a process may take to start or to connect.
const BOUND: Duration = Duration::from_secs(20);
/// Of the figures that it prints each second, the first and the last are of parts of a second.
const SECONDS: usize = 4;

/// A process that is ended with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says what is missing, if anything is.
///
/// # Errors
/// Everything that is missing, and what to do about it.
pub fn check() -> Result<(), String> {
    let mut missing = Vec::new();
    let started = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = started {
        missing.push(not_started(PROGRAM, PACKAGE, &error));
    }
    if !geteuid().is_root() {
        missing.push("DPDK must run as root: start this as root".into());
    }
    let pages = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let pages = pages.trim().parse().unwrap_or(0);
    if pages < HUGE_PAGES {
        let wanted = format!("DPDK wants {HUGE_PAGES} huge pages, there are {pages}");
        missing.push(format!("{wanted}: echo {HUGE_PAGES} > /proc/sys/vm/nr_hugepages"));
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

/// Frames a second, in millions, that vhost receives from a virtio-user that only sends.
///
/// # Errors
/// It does not start, or prints no figures.
pub fn to_vhost(cores: [usize; 2], len: usize) -> Result<f64, String> {
    check()?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let socket = dir.path().join("vhost.sock");
    let log = dir.path().join("vhost.log");
    let back = format!("net_vhost0,iface={}", socket.display());
    let _back = start(cores[1], &back, &["--forward-mode=rxonly"], &log)?;
    wait(|| socket.exists(), "vhost's socket", &log)?;
    let front = format!("net_virtio_user0,path={}", socket.display());
    let packets = format!("--txpkts={len}");
    let _front =
        start(cores[0], &front, &["--forward-mode=txonly", &packets], &dir.path().join("virtio.log"))?;
    wait(|| rates(&log).len() > SECONDS, "testpmd's figures", &log)?;
    let mut rates = rates(&log);
    rates.remove(0);
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2] / 1e6)
}

fn start(core: usize, device: &str, more: &[&str], log: &Path) -> Result<Process, String> {
    let out = fs::File::create(log).map_err(|e| e.to_string())?;
    let child = Command::new(PROGRAM)
        // The thread that prints floats; the one that forwards has the core.
        .args(["--lcores", &format!("0@(0,1),1@{core}"), "--main-lcore", "0"])
        .args(["--iova-mode=va", "--in-memory", "--single-file-segments", "--no-pci", "-m", "256"])
        .args(["--vdev", device, "--", "--auto-start", "--stats-period", "1"])
        .args(["--total-num-mbufs=32768", "--nb-cores=1"])
        .args(more)
        .stdin(Stdio::null())
        .stderr(out.try_clone().map_err(|e| e.to_string())?)
        .stdout(out)
        .spawn()
        .map_err(|e| not_started(PROGRAM, PACKAGE, &e))?;
    Ok(Process(child))
}

/// The figures printed so far that are not 0: before the other side is there they are.
fn rates(log: &Path) -> Vec<f64> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let figures = text.lines().filter_map(|line| line.trim().strip_prefix("Rx-pps:"));
    let figures = figures.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    figures.filter(|rate| *rate > 0.0).collect()
}

/// Waits until `done`; if that takes too long, the error ends with what `log` last said.
fn wait(done: impl Fn() -> bool, what: &str, log: &Path) -> Result<(), String> {
    let deadline = Instant::now() + BOUND;
    while !done() {
        if Instant::now() >= deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            return Err(format!("{PROGRAM}: no {what} within {BOUND:?}; it said last: {}", last.trim()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
