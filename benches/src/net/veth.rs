//! The peer of row N2: a Linux bridge between two veth pairs, fed by an AF_PACKET sender.
//!
//! This program runs itself once more in a user and a network namespace of its own, so that no privilege is needed
//! and nothing is left behind.

use super::ours::frame;
use crate::cores::pin;
use crate::missing::{no_bridge, not_started};
use crate::sandbox;
use bridge::port::packet::Packet;
use bridge::{Frame, Frames, Port};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the process inside: core, bytes of a frame and milliseconds.
const INSIDE: &str = "XPV_BENCH_VETH";
const SETUP: &str = "
    ip link add br0 type bridge && ip link set br0 up
    for n in 0 1; do
        ip link add a$n type veth peer name b$n && ip link set b$n master br0
        ip link set a$n up && ip link set b$n up
    done";

/// Frames a second, in millions, that come out at the far end, the sender on one core.
///
/// # Errors
/// Namespaces are not allowed here, or `ip` (package iproute2) or `unshare` (util-linux) are missing.
pub fn through_linux(core: usize, len: usize, time: Duration) -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(program)
        .env(INSIDE, format!("{core} {len} {}", time.as_millis()))
        .output()
        .map_err(|e| not_started("unshare", "util-linux", &e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    text.trim().parse().map_err(|_| refused(format!("{text}{error}").trim()))
}

/// What to do about these words of `unshare` or of the process inside.
fn refused(said: &str) -> String {
    let known = sandbox::refused(said).or_else(|| no_bridge(said));
    known.unwrap_or_else(|| format!("Linux's bridge in a network namespace: {said}"))
}

/// Whether this process is the one inside, which has done its part then.
pub fn is_inside() -> bool {
    let Ok(arguments) = std::env::var(INSIDE) else { return false };
    match inside(&arguments) {
        Ok(rate) => println!("{rate}"),
        Err(error) => eprintln!("{error}"),
    }
    true
}

fn inside(arguments: &str) -> Result<f64, String> {
    let numbers: Vec<usize> = arguments.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [core, len, millis] = numbers[..] else { return Err("bad arguments".into()) };
    sh(SETUP)?;
    let sender = mac("a0")?;
    let receiver = mac("a1")?;
    // The bridge learns both, so that nothing is flooded.
    let mut far = Packet::open("a1").map_err(|e| e.to_string())?;
    far.send(Frames::of(&[Frame::from_slice(&frame(sender, receiver, 60))])).map_err(|e| e.to_string())?;
    far.flush().map_err(|e| e.to_string())?;
    drop(far);
    let mut port = Packet::open("a0").map_err(|e| e.to_string())?;
    pin(core);
    let frames = vec![Frame::from_slice(&frame(receiver, sender, len)); 64];
    let before = received()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(millis as u64) {
        port.send(Frames::of(&frames)).map_err(|e| e.to_string())?;
        port.flush().map_err(|e| e.to_string())?;
    }
    Ok((received()? - before) / start.elapsed().as_secs_f64() / 1e6)
}

fn sh(command: &str) -> Result<(), String> {
    Command::new("ip").arg("-V").output().map_err(|e| not_started("ip", "iproute2", &e))?;
    let output = Command::new("sh").args(["-ec", command]).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn read(name: &str, what: &str) -> Result<String, String> {
    // The /sys of the mount namespace shows another network namespace: /proc/net/dev is this thread's.
    let text = fs::read_to_string("/proc/thread-self/net/dev").map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    line.map(str::to_owned).ok_or(format!("no {what} of {name}"))
}

/// Frames that the far end has received.
fn received() -> Result<f64, String> {
    let line = read("a1", "counters")?;
    let packets = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    packets.ok_or("no count of packets".into())
}

fn mac(name: &str) -> Result<[u8; 6], String> {
    let output = Command::new("ip").args(["-o", "link", "show", name]).output();
    let output = output.map_err(|e| not_started("ip", "iproute2", &e))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let bytes = address
        .map(|a| a.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Vec<_>>());
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(format!("no address of {name} in {text:?}"))
}
