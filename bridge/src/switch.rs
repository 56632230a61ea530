//! The switch as a value: it takes the frames of one port and decides which of them go to which other port.
//!
//! A learning switch is an Ethernet bridge: it sends a frame to the port where its destination was last seen, and does not
//! forward reserved group addresses of IEEE 802.1D. A wire joins two ports as a cable does: whatever comes in at one end goes out
//! at the other, so that 802.1X, LLDP, STP and LACP pass, and a guest that sniffs a mirrored port hears everything.
//!
//! It does no I/O, reads no clock and allocates only while it grows. It reads only the frames' private heads.

use crate::{
    Frame, PortBatch, config,
    fdb::{Fdb, Limits, Mac, PortId, Station},
};

/// The counts of a forwarded batch, beside the frames for each port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSummary {
    /// Frames without a complete Ethernet header in their head.
    pub runts: u64,
    /// Frames from a group address or from zero, which no station has. Linux's bridge drops them too.
    pub bad_sources: u64,
    /// Frames for reserved group addresses, which bridges do not forward.
    pub reserved: u64,
    /// Whether any frame has a checksum or a segmentation to be done.
    pub offloads: bool,
    /// Whether all frames that are forwarded go to all ports.
    pub flooded: bool,
}

/// A port, and the frames of the current batch that go to it.
#[derive(Debug)]
struct EgressPort {
    max_len: usize,
    batch: PortBatch,
    too_long: u64,
}

/// The frames of a batch that are to be sent to one port.
#[derive(Debug)]
pub struct Egress<'a> {
    /// The port.
    pub port: PortId,
    /// The frames.
    pub batch: &'a PortBatch,
    /// Number of frames dropped because they are longer than the port takes.
    pub too_long: u64,
}

/// Where frames go.
#[derive(Debug)]
enum Forwarding {
    /// To the port where their destination was last seen.
    Learning(Fdb),
    /// From each of two ports to the other.
    Wire,
}

/// A learning switch, or a wire.
///
/// ```
/// use bridge::{Batch, fdb::{Limits, PortId}, switch::Switch};
///
/// let mut switch = Switch::new(Limits::default(), 0x5eed);
/// (0..3).for_each(|port| switch.attach(PortId(port), 1518));
/// let mut batch = Batch::new(1);
/// batch.slot().unwrap().set_slice(&[&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0; 48]].concat());
/// switch.forward(PortId(0), batch.frames(), 0);
/// let ports: Vec<_> = switch.egresses().map(|egress| egress.port).collect();
/// assert_eq!(ports, [PortId(1), PortId(2)]);
/// ```
#[derive(Debug)]
pub struct Switch {
    forwarding: Forwarding,
    egress_ports: Vec<Option<EgressPort>>,
    ports: Vec<PortId>,
    /// The ports that the current batch has frames for.
    touched: Vec<PortId>,
}

impl Switch {
    /// Makes a learning switch without ports. `seed` must not be guessable by the stations that it serves.
    pub fn new(limits: Limits, seed: u64) -> Switch {
        Switch::of(Forwarding::Learning(Fdb::new(limits, seed)))
    }

    /// Makes a switch of this kind without ports.
    pub(crate) fn with(forwarding: config::Forwarding, seed: u64) -> Switch {
        match forwarding {
            config::Forwarding::Learning(limits) => Switch::new(limits, seed),
            config::Forwarding::Wire => Switch::wire(),
        }
    }

    /// Makes a wire without ports.
    pub fn wire() -> Switch {
        Switch::of(Forwarding::Wire)
    }

    fn of(forwarding: Forwarding) -> Switch {
        Switch { forwarding, egress_ports: Vec::new(), ports: Vec::new(), touched: Vec::new() }
    }

    /// The most ports that can be attached: the two ends of a wire, or 65,536.
    pub fn max_ports(&self) -> usize {
        match self.forwarding {
            Forwarding::Learning(_) => 1 << 16,
            Forwarding::Wire => 2,
        }
    }

    /// The lowest free port number; `None` when all ports are attached.
    pub fn free_port_id(&self) -> Option<PortId> {
        if self.ports.len() >= self.max_ports() {
            return None;
        }
        let free = self.egress_ports.iter().position(Option::is_none);
        u16::try_from(free.unwrap_or(self.egress_ports.len())).ok().map(PortId)
    }

    /// Adds a port that takes frames of up to `max_len` bytes, or sets `max_len` of one that exists.
    pub fn attach(&mut self, port: PortId, max_len: usize) {
        let index = usize::from(port.0);
        if index >= self.egress_ports.len() {
            self.egress_ports.resize_with(index + 1, || None);
        }
        match &mut self.egress_ports[index] {
            Some(egress) => egress.max_len = max_len,
            empty => {
                *empty = Some(EgressPort { max_len, batch: PortBatch::default(), too_long: 0 });
                self.ports.push(port);
            }
        }
    }

    /// Removes a port and the forwarding entries of its stations.
    pub fn detach(&mut self, port: PortId) {
        if let Some(egress) = self.egress_ports.get_mut(usize::from(port.0)) {
            *egress = None;
        }
        self.ports.retain(|other| *other != port);
        self.touched.retain(|other| *other != port);
        if let Forwarding::Learning(fdb) = &mut self.forwarding {
            fdb.forget(port);
        }
    }

    /// The forwarding database, which a wire has not.
    pub fn fdb(&self) -> Option<&Fdb> {
        match &self.forwarding {
            Forwarding::Learning(fdb) => Some(fdb),
            Forwarding::Wire => None,
        }
    }

    /// Removes expired entries from the forwarding database.
    pub fn sweep(&mut self, now_s: u32) {
        if let Forwarding::Learning(fdb) = &mut self.forwarding {
            fdb.sweep(now_s);
        }
    }

    /// The port that all frames of port `from` go to: the other end of a wire. A learning switch drops some, and its other
    /// ports may not see all.
    #[inline]
    pub fn sole_destination(&self, from: PortId) -> Option<PortId> {
        match self.forwarding {
            Forwarding::Learning(_) => None,
            Forwarding::Wire => self.ports.iter().copied().find(|port| *port != from),
        }
    }

    /// Sorts frames received from port `from` (at most 65,536) by the ports that they are to be sent to.
    pub fn forward(&mut self, from: PortId, frames: &[Frame], now_s: u32) -> BatchSummary {
        self.clear_batches();
        let Switch { forwarding, egress_ports, ports, touched } = self;
        let mut summary = BatchSummary { flooded: true, ..BatchSummary::default() };
        for (index, frame) in frames.iter().enumerate().take(1 << 16) {
            let Some(header) = frame.head().first_chunk() else {
                summary.runts += 1;
                continue;
            };
            summary.offloads |= frame.offload().is_work();
            let decision = match forwarding {
                Forwarding::Learning(fdb) => decide(fdb, from, header, now_s),
                Forwarding::Wire => Decision::Flood,
            };
            match decision {
                Decision::Port(port) => {
                    summary.flooded = false;
                    put(egress_ports, touched, port, index, frame);
                }
                Decision::Flood => {
                    for port in ports.iter().filter(|port| **port != from) {
                        put(egress_ports, touched, *port, index, frame);
                    }
                }
                Decision::Reserved => summary.reserved += 1,
                Decision::BadSource => summary.bad_sources += 1,
                Decision::Back => {}
            }
        }
        summary
    }

    /// The ports that the last batch has frames for, each once.
    pub fn egresses(&self) -> impl Iterator<Item = Egress<'_>> + '_ {
        self.touched.iter().filter_map(|port| {
            let egress = self.egress_ports.get(usize::from(port.0))?.as_ref()?;
            Some(Egress { port: *port, batch: &egress.batch, too_long: egress.too_long })
        })
    }

    fn clear_batches(&mut self) {
        for port in self.touched.drain(..) {
            if let Some(Some(egress)) = self.egress_ports.get_mut(usize::from(port.0)) {
                egress.batch.clear();
                egress.too_long = 0;
            }
        }
    }
}

/// What a learning switch does with a frame.
#[derive(Clone, Copy)]
enum Decision {
    Port(PortId),
    /// To all ports but its own.
    Flood,
    /// Not forwarded, as its address is reserved for bridges themselves.
    Reserved,
    /// Not forwarded, as its source is no single station's.
    BadSource,
    /// Not forwarded, as its destination is where it comes from.
    Back,
}

/// Learns the source of a frame, and decides where the frame goes.
#[inline]
fn decide(fdb: &mut Fdb, from: PortId, header: &[u8; 14], now_s: u32) -> Decision {
    let (to, source) = Mac::pair(header);
    if !source.is_station() {
        return Decision::BadSource;
    }
    fdb.learn(Station::new(source, 0), from, now_s);
    if to.is_group() {
        return if to.is_reserved() { Decision::Reserved } else { Decision::Flood };
    }
    match fdb.lookup(Station::new(to, 0), now_s) {
        Some(port) if port == from => Decision::Back,
        Some(port) => Decision::Port(port),
        None => Decision::Flood,
    }
}

#[inline]
fn put(
    egress_ports: &mut [Option<EgressPort>],
    touched: &mut Vec<PortId>,
    port: PortId,
    index: usize,
    frame: &Frame,
) {
    let Some(Some(egress)) = egress_ports.get_mut(usize::from(port.0)) else {
        return;
    };
    if egress.batch.is_empty() && egress.too_long == 0 {
        touched.push(port);
    }
    if frame.len() <= egress.max_len || frame.offload().gso.is_some() {
        egress.batch.push(index as u16);
    } else {
        egress.too_long += 1;
    }
}

#[cfg(test)]
mod tests;
