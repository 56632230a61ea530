//! Row N3w: processor time of dom0 and a guest for a GB that comes from a tap or a packet socket of dom0's by a wire, in pages
//! that are flipped and in pages that are copied into.
//!
//! The sender is a program of the host's. What the guest's kernel does with a frame is part of the guest's time, since the
//! tap's writer does it; its socket is never read.

use crate::missing::no_bridge;
use crate::namespace::{Namespace, ip};
use crate::row::{Goal, Row, alternate};
use crate::sample::Sample;
use crate::xpv::Machine;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

/// The row's name.
pub const NAME: &str = "N3w";
/// Pairs of measurements of a case.
const ROUNDS: usize = 7;
/// Of one measurement.
const TIME: Duration = Duration::from_millis(300);
/// Of an Ethernet frame.
const LENGTHS: [usize; 3] = [1_514, 9_000, 65_000];
/// Of Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;
const MTU: usize = 65_000;
/// How the guests of the same names receive.
const METHODS: [&str; 2] = ["flip", "copy"];
const MEDIA: [&str; 2] = ["tap", "packet socket"];

/// A guest and where its frames come from.
struct Way {
    /// The guest's processes and dom0's.
    pids: [u32; 2],
    guest: &'static str,
    /// Connected to a socket of the guest's, by the medium.
    senders: [UdpSocket; 2],
    /// The sockets that they are connected to.
    _receivers: [UdpSocket; 2],
    _namespace: Namespace,
}

/// A machine with a guest of each method, each with a wire of each medium.
struct Setup {
    machine: Machine,
    paths: [Way; 2],
}

impl Setup {
    fn new(xpv: &Path) -> Result<Self, String> {
        let wires =
            METHODS.map(|method| [format!("t{method}=tap:h{method}"), format!("p{method}=packet:f{method}")]);
        for method in METHODS {
            let link = format!("link add n{method} mtu {MTU} type veth peer name f{method} mtu {MTU}");
            ip(&link).map_err(|why| no_bridge(&why).unwrap_or(why))?;
        }
        let arguments: Vec<&str> = wires.iter().flatten().flat_map(|wire| ["--wire", wire]).collect();
        let machine = Machine::start_with(xpv, &arguments)?;
        let [flip, copy] = METHODS;
        let paths = [Way::new(&machine, flip, 0)?, Way::new(&machine, copy, 1)?];
        Ok(Self { machine, paths })
    }

    /// Seconds of processor time a GB of frames of `len` bytes.
    fn measure(&self, method: usize, medium: usize, len: usize) -> Result<f64, String> {
        let Way { pids, guest, senders, .. } = &self.paths[method];
        let datagram = vec![7; len - HEADERS];
        let used = || pids.iter().map(|pid| processor_time(*pid)).sum::<Result<u64, String>>();
        let received = self.machine.received(guest)?;
        let before = used()?;
        let start = Instant::now();
        while start.elapsed() < TIME {
            // A full queue is no error: what was received is counted.
            let _ = senders[medium].send(&datagram);
        }
        let spent = used()? - before;
        let bytes = self.machine.received(guest)? - received;
        match bytes {
            0 => Err(format!("guest {guest} received nothing by its {}", MEDIA[medium])),
            bytes => Ok(spent as f64 / bytes as f64),
        }
    }
}

impl Way {
    fn new(machine: &Machine, method: &'static str, number: u8) -> Result<Self, String> {
        let namespace = Namespace::new()?;
        let vif = |wire: char| format!("'bridge={wire}{method},mtu={MTU}'");
        let lines = format!("vif = [{}, {}]", vif('t'), vif('p'));
        machine.create_with(method, &lines, &namespace.path(), method)?;
        ip(&format!("link set h{method} mtu {MTU}"))?;
        let net = |medium: usize| format!("10.{}.{}", 80 + number, medium);
        let mut sockets = Vec::new();
        for (medium, host) in ['h', 'n'].into_iter().enumerate() {
            let address = net(medium);
            ip(&format!("address add {address}.1/24 dev {host}{method}"))?;
            ip(&format!("link set {host}{method} up"))?;
            namespace.ip(&format!("address add {address}.2/24 dev eth{medium}"))?;
            namespace.ip(&format!("link set eth{medium} up"))?;
            let failed = |e: std::io::Error| format!("a socket: {e}");
            let receiver = namespace.run(|| UdpSocket::bind((format!("{address}.2"), 0))).map_err(failed)?;
            let sender = UdpSocket::bind((format!("{address}.1"), 0)).map_err(failed)?;
            sender.connect(receiver.local_addr().map_err(failed)?).map_err(failed)?;
            sockets.push((sender, receiver));
        }
        let (senders, receivers): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        let two = |sockets: Vec<UdpSocket>| sockets.try_into().map_err(|_| "two sockets".to_owned());
        let pids = [machine.guest(method)?, machine.dom0()];
        Ok(Self {
            pids,
            guest: method,
            senders: two(senders)?,
            _receivers: two(receivers)?,
            _namespace: namespace,
        })
    }
}

/// Nanoseconds that the threads of a process have run, by /proc/PID/task/TID/schedstat.
fn processor_time(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/task");
    let failed = |e: &dyn std::fmt::Display| format!("{path}: {e}");
    let mut total = 0;
    for task in fs::read_dir(&path).map_err(|e| failed(&e))? {
        let path = task.map_err(|e| failed(&e))?.path().join("schedstat");
        // A thread that has ended since has no file.
        let Ok(text) = fs::read_to_string(path) else { continue };
        let first = text.split(' ').next().unwrap_or_default();
        total += first.parse::<u64>().map_err(|e| failed(&e))?;
    }
    Ok(total)
}

fn cases() -> impl Iterator<Item = (usize, usize)> {
    (0..MEDIA.len()).flat_map(|medium| LENGTHS.map(|len| (medium, len)))
}

fn case(medium: usize, len: usize) -> String {
    format!("{} to guest, frames of {len} bytes", MEDIA[medium])
}

/// Row N3w: a line for each medium and length, flipped beside copied.
///
/// # Errors
/// The machine does not come up.
pub fn rows(xpv: &Path) -> Result<Vec<Row>, String> {
    let setup = Setup::new(xpv)?;
    let row = |(medium, len)| {
        let pair = |round| {
            let (flip, copy) =
                alternate(round, || setup.measure(0, medium, len), || setup.measure(1, medium, len));
            Ok((flip?, copy?))
        };
        // The first finds no address known, and caches cold.
        let pairs = (0..=ROUNDS).map(pair).skip(1).collect::<Result<Vec<_>, String>>()?;
        let what = format!("{}: processor time a GB, flipped beside copied", case(medium, len));
        Ok(Row::new(NAME, what, "s/GB", Goal::Nothing, &pairs))
    };
    cases().map(row).collect()
}

/// One sample of that program, of what is flipped.
///
/// # Errors
/// As [`rows`].
pub fn once(xpv: &Path) -> Result<Sample, String> {
    let setup = Setup::new(xpv)?;
    let measure = |(medium, len)| {
        setup.measure(0, medium, len)?;
        Ok((case(medium, len), setup.measure(0, medium, len)?))
    };
    Ok(Sample::new("s/GB", cases().map(measure).collect::<Result<Vec<_>, String>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_a_busy_process_grows() {
        let before = processor_time(std::process::id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while processor_time(std::process::id()).unwrap() == before {
            assert!(Instant::now() < deadline, "still {before} ns");
        }
        assert!(processor_time(0).unwrap_err().contains("/proc/0/task"));
    }
}
