//! Rows N4, N7 and N8: TCP and UDP between two network namespaces.
//!
//! Ours is the way of a frame of an ordinary program on a machine of xpv's processes: tap, guest, vif, bridge, vif, guest, tap.
//! The peers join the same namespaces by less ([`sides`]), and carry the same traffic of the same programs.

mod echo;
pub mod flood;
mod iperf3;
mod joined;
mod lossless;
mod open_vswitch;
mod sides;
mod sockperf;
mod tcp;
mod udp_stream;

pub use echo::{Echo, round_trip_times};
pub use joined::Link;

use crate::namespace::Ends;
use crate::row::{Goal, Row};
use crate::sample::Sample;
use sides::{Peer, Sides};
use std::path::Path;
use std::time::Duration;

/// Every side is measured this often.
const ROUNDS: usize = 5;
/// Of each measurement of round trips and connections.
const TIME: Duration = Duration::from_millis(700);

/// A row: what is measured, and what its figures must reach.
#[derive(Clone, Copy, Debug)]
pub struct LinkRow {
    /// The name in the table.
    pub name: &'static str,
    /// Of all figures.
    unit: &'static str,
    /// One figure a case, of [`Self::cases`]; of the last ones it may lack.
    measure: fn(&Ends) -> Result<Vec<f64>, String>,
    cases: &'static [Case],
}

/// One of a row's figures.
#[derive(Clone, Copy, Debug)]
struct Case {
    what: &'static str,
    /// Beside a program that forwards between two taps.
    tapfwd: Goal,
    /// Beside veth and Linux's bridge, which copy nothing to user space: what would be ideal.
    veth: Goal,
    /// Beside Open vSwitch's forwarding in user space.
    open_vswitch: Goal,
}

/// A case of rates, with these goals beside tapfwd and veth.
const fn rate(what: &'static str, tapfwd: f64, veth: Goal) -> Case {
    Case { what, tapfwd: Goal::AtLeast(tapfwd), veth, open_vswitch: Goal::Nothing }
}

/// A case of times. At least 0.9 of a rate is at most 1.11 times the time.
const fn time(what: &'static str) -> Case {
    let tapfwd = Goal::AtMost(1.11);
    Case { what, tapfwd, veth: Goal::AtMostAbove(20.0), open_vswitch: Goal::Nothing }
}

const fn iperf3_case(what: &'static str, veth: f64) -> Case {
    Case { open_vswitch: Goal::AtLeast(2.0), ..rate(what, 0.9, Goal::AtLeast(veth)) }
}

/// Row N4: bytes of TCP.
pub const N4: LinkRow = LinkRow {
    name: "N4",
    unit: "Gbit/s",
    measure: |ends| [1, 4].into_iter().map(|streams| iperf3::run(ends, streams)).collect(),
    cases: &[iperf3_case("iperf3, 1 TCP stream", 0.8), iperf3_case("iperf3, 4 TCP streams", 0.5)],
};

/// Row N7: how long a datagram and its answer take.
pub const N7: LinkRow = LinkRow {
    name: "N7",
    unit: "us",
    measure: |ends| {
        let [p50, p99] = echo::round_trips(ends, TIME)?;
        let mut figures = vec![p50, p99];
        if sockperf::is_installed() {
            figures.extend(sockperf::run(ends)?);
        }
        Ok(figures)
    },
    cases: &[
        time("UDP round trip, 64 bytes, median"),
        time("UDP round trip, 64 bytes, p99"),
        time("sockperf ping-pong --full-rtt, 64 bytes, median"),
        time("sockperf ping-pong --full-rtt, 64 bytes, p99"),
    ],
};

/// Row N7r: requests over one TCP connection, each after the last one's response.
pub const N7R: LinkRow = LinkRow {
    name: "N7r",
    unit: "k/s",
    measure: |ends| Ok(vec![tcp::requests(ends, TIME)? / 1e3]),
    cases: &[rate("TCP requests a second, 64 bytes", 0.9, Goal::Nothing)],
};

/// Row N7c: requests with a TCP connection each.
pub const N7C: LinkRow = LinkRow {
    name: "N7c",
    unit: "k/s",
    measure: |ends| Ok(vec![tcp::connections(ends, TIME)? / 1e3]),
    cases: &[rate("TCP connections a second, a request of 64 bytes each", 0.9, Goal::Nothing)],
};

/// Row N8: the highest rate of datagrams one way of which none is lost.
pub const N8: LinkRow = LinkRow {
    name: "N8",
    unit: "k/s",
    measure: |ends| SIZES.into_iter().map(|bytes| Ok(lossless::highest(ends, bytes)? / 1e3)).collect(),
    cases: &[
        rate("UDP one way without loss, 64 bytes", 0.9, Goal::AtLeast(0.8)),
        rate("UDP one way without loss, 1400 bytes", 0.9, Goal::AtLeast(0.8)),
    ],
};

/// Row N8f: datagrams that arrive if a sender sends as fast as it can.
pub const N8F: LinkRow = LinkRow {
    name: "N8f",
    unit: "k/s",
    measure: |ends| {
        let delivered = |bytes| Ok(udp_stream::run(ends, bytes, None, TIME)?.received_a_second() / 1e3);
        SIZES.into_iter().map(delivered).collect()
    },
    cases: &[
        rate("UDP one way at full offer, 64 bytes", 0.9, Goal::AtLeast(0.8)),
        rate("UDP one way at full offer, 1400 bytes", 0.9, Goal::AtLeast(0.8)),
    ],
};

/// Bytes of the datagrams of rows N8 and N8f.
const SIZES: [usize; 2] = [64, 1_400];

impl LinkRow {
    /// Measures that program `xpv` and every peer, in turn; a line for each case and peer.
    ///
    /// # Errors
    /// What is missing, or went wrong.
    pub fn rows(self, xpv: &Path) -> Result<Vec<Row>, String> {
        let sides = Sides::start(self.name, xpv)?;
        let rounds =
            (0..ROUNDS).map(|round| sides.round(round, self.measure)).collect::<Result<Vec<_>, _>>()?;
        let mut rows = Vec::new();
        for (number, &peer) in sides.peers().iter().enumerate() {
            let measured = rounds[0][0].len();
            for (at, case) in self.cases[..measured].iter().enumerate() {
                let pairs: Vec<_> =
                    rounds.iter().map(|sides| (sides[0][at], sides[number + 1][at])).collect();
                let what = format!("{}; {}", case.what, peer.described());
                rows.push(Row::new(self.name, what, self.unit, case.goal(peer), &pairs));
            }
        }
        Ok(rows)
    }

    /// One sample of that program `xpv`, after another that warms up.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub fn once(self, xpv: &Path) -> Result<Sample, String> {
        let link = Link::xpv(xpv)?;
        (self.measure)(&link.ends)?;
        let figures = (self.measure)(&link.ends)?;
        let cases = self.cases.iter().map(|case| case.what.to_owned());
        Ok(Sample::new(self.unit, cases.zip(figures)))
    }
}

impl Case {
    fn goal(&self, peer: Peer) -> Goal {
        match peer {
            Peer::Tapfwd => self.tapfwd,
            Peer::Veth => self.veth,
            Peer::OpenVswitch => self.open_vswitch,
        }
    }
}
