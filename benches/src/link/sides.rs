//! Ours and its peers, each with two namespaces of its own. All are there from the start; they are measured one at a time.

use super::joined::Link;
use crate::cargo::{self, TAPFWD};
use crate::namespace::Ends;
use std::path::Path;

/// What joins a peer's namespaces.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Peer {
    /// The program `tapfwd`, which makes the system calls that user space cannot do without.
    Tapfwd,
    /// Linux's bridge with veth pairs.
    Veth,
    /// Open vSwitch's `netdev` datapath, in user space, with taps.
    OpenVswitch,
}

impl Peer {
    /// In words, for the table.
    pub(super) fn described(self) -> &'static str {
        match self {
            Self::Tapfwd => "tapfwd",
            Self::Veth => "veth and Linux bridge (ideal)",
            Self::OpenVswitch => "Open vSwitch, netdev datapath",
        }
    }

    fn link(self) -> Result<Link, String> {
        match self {
            Self::Tapfwd => Link::tapfwd(&cargo::build_here(TAPFWD)?),
            Self::Veth => Link::veth(),
            Self::OpenVswitch => Link::open_vswitch(),
        }
    }
}

/// All sides of a row.
pub(super) struct Sides {
    peers: Vec<Peer>,
    /// Ours, and then the peers'.
    links: Vec<Link>,
}

impl Sides {
    /// Starts them. Open vSwitch is left out where it is not installed or does not start, and a note for the reader says so.
    pub(super) fn start(row: &str, xpv: &Path) -> Result<Self, String> {
        let mut sides = Self { peers: Vec::new(), links: vec![Link::xpv(xpv)?] };
        for peer in [Peer::Tapfwd, Peer::Veth, Peer::OpenVswitch] {
            match peer.link().map_err(|why| format!("{}: {why}", peer.described())) {
                Ok(link) => {
                    sides.peers.push(peer);
                    sides.links.push(link);
                }
                Err(why) if peer == Peer::OpenVswitch => eprintln!("{row}: without {why}"),
                Err(why) => return Err(why),
            }
        }
        Ok(sides)
    }

    /// The peers, in the order of their figures.
    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Measures every side once, in even rounds from first to last, in odd ones from last to first. Gives the figures of ours,
    /// and then of each peer.
    pub(super) fn round(
        &self,
        round: usize,
        measure: fn(&Ends) -> Result<Vec<f64>, String>,
    ) -> Result<Vec<Vec<f64>>, String> {
        let mut order: Vec<usize> = (0..self.links.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut figures = vec![Vec::new(); order.len()];
        for at in order {
            let who = if at == 0 { "ours" } else { self.peers[at - 1].described() };
            figures[at] = measure(&self.links[at].ends).map_err(|why| format!("{who}: {why}"))?;
        }
        Ok(figures)
    }
}
