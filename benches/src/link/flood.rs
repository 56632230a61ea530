//! Row S2n: what two guests keep of their TCP, and how many of their pings are lost, while a third floods their bridge.
//!
//! The flooder sends 64-byte frames as fast as it can from a packet socket: to one of the two, to everybody, and to addresses that
//! nobody has. The peer is the same over veth pairs and a Linux bridge, where each frame's way is made in its sender's time. What
//! is kept is a share of the same side's throughput without a flood, so that the sides' own speeds do not matter.

use super::{echo, iperf3};
use crate::missing::no_bridge;
use crate::namespace::{ADDRESSES, Ends, INTERFACE, Namespace, ip};
use crate::row::{Goal, Row};
use crate::sample::Sample;
use crate::xpv::Machine;
use bridge::port::packet::Packet;
use bridge::{Frame, Frames, Port};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The row's name.
pub const NAME: &str = "S2n";
/// Every side is measured this often.
const ROUNDS: usize = 5;
/// Bytes of a frame of a flood.
const BYTES: usize = 64;
/// Frames of one call.
const BURST: usize = 64;
/// The least share of what Linux's guests keep that ours must keep.
const KEPT: f64 = 0.9;

/// Where a flood goes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Flood {
    Victim,
    Broadcast,
    Unknown,
}

const FLOODS: [Flood; 3] = [Flood::Victim, Flood::Broadcast, Flood::Unknown];

impl Flood {
    fn described(self) -> &'static str {
        match self {
            Self::Victim => "64-byte frames to a victim",
            Self::Broadcast => "64-byte broadcasts",
            Self::Unknown => "64-byte frames to unknown addresses",
        }
    }

    fn frames(self) -> Vec<Frame> {
        (0..BURST).map(|n| Frame::from_slice(&self.frame(n as u8))).collect()
    }

    /// The `n`th frame, of the ether type for local experiments (IEEE 802), which every kernel drops.
    fn frame(self, n: u8) -> Vec<u8> {
        let to = match self {
            Self::Victim => mac(1),
            Self::Broadcast => [0xff; 6],
            Self::Unknown => [2, 0, 0, 0, 1, n],
        };
        let mut bytes = [&to[..], &mac(2), &[0x88, 0xb5]].concat();
        bytes.resize(BYTES, 0);
        bytes
    }
}

/// The address of the client, the server and the flooder.
const fn mac(number: u8) -> [u8; 6] {
    [0, 0x16, 0x3e, 0, 0, number]
}

/// Two victims and a flooder on one bridge.
struct Flooded {
    ends: Ends,
    flooder: Namespace,
    /// Keeps them joined while it lives; Linux's bridge is part of this process's network namespace.
    _machine: Option<Machine>,
}

/// What was measured beside one flood.
#[derive(Clone, Copy, Debug)]
struct Beside {
    /// Gbit/s of TCP.
    tcp: f64,
    /// Pings lost, in percent.
    lost: f64,
}

/// A round of one side: without a flood, and beside each.
struct Round {
    quiet: f64,
    beside: Vec<Beside>,
}

impl Flooded {
    fn xpv(program: &Path) -> Result<Self, String> {
        let machine = Machine::start(program)?;
        let (ends, flooder) = namespaces()?;
        let guests = ["alice", "bob", "mallory"];
        for (number, (name, namespace)) in
            guests.into_iter().zip([&ends.client, &ends.server, &flooder]).enumerate()
        {
            let vif = format!("vif = ['mac=00:16:3e:00:00:{number:02x}']");
            machine.create(name, &vif, &namespace.path())?;
        }
        Self::new(ends, flooder, Some(machine))
    }

    fn veth() -> Result<Self, String> {
        let (ends, flooder) = namespaces()?;
        let missing = |why: String| no_bridge(&why).unwrap_or(why);
        ip("link add br1 type bridge").map_err(missing)?;
        ip("link set br1 up")?;
        for (number, namespace) in [&ends.client, &ends.server, &flooder].into_iter().enumerate() {
            ip(&format!("link add f{number} type veth peer name {INTERFACE}")).map_err(missing)?;
            ip(&format!("link set {INTERFACE} address 00:16:3e:00:00:{number:02x}"))?;
            ip(&format!("link set {INTERFACE} netns {}", namespace.path()))?;
            ip(&format!("link set f{number} master br1"))?;
            ip(&format!("link set f{number} up"))?;
        }
        Self::new(ends, flooder, None)
    }

    fn new(ends: Ends, flooder: Namespace, machine: Option<Machine>) -> Result<Self, String> {
        ends.configure()?;
        flooder.ip(&format!("link set {INTERFACE} up"))?;
        echo::wait(&ends)?;
        Ok(Self { ends, flooder, _machine: machine })
    }

    fn round(&self) -> Result<Round, String> {
        let quiet = iperf3::run(&self.ends, 1)?;
        let beside = FLOODS.iter().map(|flood| self.beside(*flood)).collect::<Result<_, _>>()?;
        Ok(Round { quiet, beside })
    }

    fn beside(&self, flood: Flood) -> Result<Beside, String> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| self.flooder.run(|| send(flood, &stop)));
            let pings = scope.spawn(|| lost_pings(&self.ends));
            let tcp = iperf3::run(&self.ends, 1);
            let lost = pings.join().expect("no panic");
            stop.store(true, Relaxed);
            flooding.join().expect("no panic")?;
            Ok(Beside { tcp: tcp?, lost: lost? })
        })
    }
}

fn namespaces() -> Result<(Ends, Namespace), String> {
    Ok((Ends::new()?, Namespace::new()?))
}

/// Sends a flood from the calling thread's namespace until it is to stop.
fn send(flood: Flood, stop: &AtomicBool) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("the flooder's socket: {e}");
    let mut port = Packet::open(INTERFACE).map_err(|e| failed(&e))?;
    let frames = flood.frames();
    while !stop.load(Relaxed) {
        port.send(Frames::of(&frames)).map_err(|e| failed(&e))?;
        port.flush().map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Pings of which no answer came within a second, in percent.
fn lost_pings(ends: &Ends) -> Result<f64, String> {
    let mut ping = Command::new("ping");
    ping.args(["-q", "-c", "50", "-i", "0.02", "-W", "1", ADDRESSES[1]]);
    // ping fails if no answer comes at all.
    ping.args(["-w", "3"]);
    let said = ends.client.run(|| ping.output()).map_err(|e| format!("ping (package iputils-ping): {e}"))?;
    let said = String::from_utf8_lossy(&said.stdout);
    percent_lost(&said).ok_or_else(|| format!("ping's output: {said}"))
}

fn percent_lost(said: &str) -> Option<f64> {
    let (before, _) = said.split_once("% packet loss")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Ours beside veth and Linux's bridge: a line for what is kept, and one for pings, of each flood.
///
/// # Errors
/// What is missing, or went wrong.
pub fn rows(xpv: &Path) -> Result<Vec<Row>, String> {
    let ours = Flooded::xpv(xpv)?;
    let veth = Flooded::veth()?;
    let rounds: Vec<[Round; 2]> =
        (0..ROUNDS).map(|_| Ok([ours.round()?, veth.round()?])).collect::<Result<_, String>>()?;
    let mut rows = Vec::new();
    for (at, flood) in FLOODS.iter().enumerate() {
        let pairs = |figure: fn(&Round, usize) -> f64| -> Vec<(f64, f64)> {
            rounds.iter().map(|[ours, veth]| (figure(ours, at), figure(veth, at))).collect()
        };
        let line = |what: &str, unit, goal, pairs: &[(f64, f64)]| {
            let what = format!("{what} beside {}; veth and Linux bridge", flood.described());
            Row::new(NAME, what, unit, goal, pairs)
        };
        let kept = pairs(|round, at| round.beside[at].tcp / round.quiet);
        rows.push(line("TCP kept", "share", Goal::AtLeast(KEPT), &kept));
        rows.push(line("TCP", "Gbit/s", Goal::Nothing, &pairs(|round, at| round.beside[at].tcp)));
        rows.push(line("pings lost", "%", Goal::AtMostAbove(0.0), &pairs(|round, at| round.beside[at].lost)));
    }
    Ok(rows)
}

/// Ours alone, after a round that warms up.
///
/// # Errors
/// As [`rows`].
pub fn once(xpv: &Path) -> Result<Sample, String> {
    let ours = Flooded::xpv(xpv)?;
    ours.round()?;
    let round = ours.round()?;
    let cases = FLOODS.iter().zip(round.beside);
    Ok(Sample::new("Gbit/s", cases.map(|(flood, beside)| (flood.described().to_owned(), beside.tcp))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_read_of_what_ping_prints() {
        let said = "50 packets transmitted, 47 received, 6% packet loss, time 1019ms\n";
        assert_eq!(percent_lost(said), Some(6.0));
        assert_eq!(percent_lost("2 transmitted, 0 received, 33.3333% packet loss"), Some(33.3333));
        assert_eq!(percent_lost("nothing"), None);
    }

    #[test]
    fn frames_of_a_flood_have_their_length_and_addresses() {
        for flood in FLOODS {
            let frames = flood.frames();
            assert!(frames.iter().all(|frame| frame.len() == BYTES && frame.head()[6..12] == mac(2)));
        }
        assert_ne!(Flood::Unknown.frame(0)[..6], Flood::Unknown.frame(1)[..6]);
    }
}
