//! The switch as a value: it takes the frames of one port and decides which of them go to which other port.
//!
//! It does no I/O, reads no clock and allocates only while it grows. It reads only the frames' private heads.

use crate::{
    Frame, PortBatch,
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

/// A learning switch.
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
    fdb: Fdb,
    egress_ports: Vec<Option<EgressPort>>,
    ports: Vec<PortId>,
    /// The ports that the current batch has frames for.
    touched: Vec<PortId>,
}

impl Switch {
    /// Makes a switch without ports. `seed` must not be guessable by the stations that it serves.
    pub fn new(limits: Limits, seed: u64) -> Switch {
        let fdb = Fdb::new(limits, seed);
        Switch { fdb, egress_ports: Vec::new(), ports: Vec::new(), touched: Vec::new() }
    }

    /// The lowest free port number; `None` when there are 65,536 ports.
    pub fn free_port_id(&self) -> Option<PortId> {
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
        self.fdb.forget(port);
    }

    /// The forwarding database.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// Removes expired entries from the forwarding database.
    pub fn sweep(&mut self, now_s: u32) {
        self.fdb.sweep(now_s);
    }

    /// Sorts frames received from port `from` (at most 65,536) by the ports that they are to be sent to.
    pub fn forward(&mut self, from: PortId, frames: &[Frame], now_s: u32) -> BatchSummary {
        self.clear_batches();
        let mut summary = BatchSummary { flooded: true, ..BatchSummary::default() };
        for (index, frame) in frames.iter().enumerate().take(1 << 16) {
            let Some(header) = frame.head().first_chunk() else {
                summary.runts += 1;
                continue;
            };
            let (to, source) = Mac::pair(header);
            if !source.is_station() {
                summary.bad_sources += 1;
                continue;
            }
            self.fdb.learn(Station::new(source, 0), from, now_s);
            summary.offloads |= frame.offload().is_work();
            if !to.is_group() {
                match self.fdb.lookup(Station::new(to, 0), now_s) {
                    Some(port) if port == from => {}
                    Some(port) => {
                        summary.flooded = false;
                        put(&mut self.egress_ports, &mut self.touched, port, index, frame);
                    }
                    None => self.flood(from, index, frame),
                }
            } else if to.is_reserved() {
                summary.reserved += 1;
            } else {
                self.flood(from, index, frame);
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

    fn flood(&mut self, from: PortId, index: usize, frame: &Frame) {
        for port in &self.ports {
            if *port != from {
                put(&mut self.egress_ports, &mut self.touched, *port, index, frame);
            }
        }
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
