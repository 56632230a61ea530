//! The switch itself, as a value: frames of one port in, which frames go out of which port out.
//!
//! No I/O, no clock, no allocation. It looks only at the frames' private heads.

use crate::{
    Frame, Outbox,
    fdb::{Fdb, Limits, Mac, PortId, Station},
};

/// What became of a batch beyond what is in the outboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames without a whole Ethernet header in their head.
    pub runts: u64,
    /// Frames for bridges themselves.
    pub reserved: u64,
    /// Whether any frame has a checksum or a segmentation left to do.
    pub work: bool,
}

/// Where a port's share of the batch is collected.
#[derive(Debug)]
struct Exit {
    max_len: usize,
    outbox: Outbox,
    too_long: u64,
}

/// What one port is to be sent of a batch.
#[derive(Debug)]
pub struct Sending<'a> {
    /// The port.
    pub port: PortId,
    /// Which frames.
    pub outbox: &'a Outbox,
    /// How many more would have been for it, but were longer than it takes.
    pub too_long: u64,
}

/// A learning switch.
#[derive(Debug)]
pub struct Switch {
    fdb: Fdb,
    exits: Vec<Option<Exit>>,
    ports: Vec<PortId>,
    touched: Vec<PortId>,
}

impl Switch {
    /// A switch without ports. `seed` should not be guessable by those it serves.
    pub fn new(limits: Limits, seed: u64) -> Switch {
        Switch { fdb: Fdb::new(limits, seed), exits: Vec::new(), ports: Vec::new(), touched: Vec::new() }
    }

    /// The lowest free place for a port; nothing when there are 65,536 already.
    pub fn vacancy(&self) -> Option<PortId> {
        let place = self.exits.iter().position(Option::is_none).unwrap_or(self.exits.len());
        u16::try_from(place).ok().map(PortId)
    }

    /// Adds a port that takes frames of up to `max_len` bytes, or sets that anew if it is there.
    pub fn attach(&mut self, port: PortId, max_len: usize) {
        let place = usize::from(port.0);
        if place >= self.exits.len() {
            self.exits.resize_with(place + 1, || None);
        }
        match &mut self.exits[place] {
            Some(exit) => exit.max_len = max_len,
            empty => {
                *empty = Some(Exit { max_len, outbox: Outbox::default(), too_long: 0 });
                self.ports.push(port);
            }
        }
    }

    /// Takes a port out and forgets what was learned from it.
    pub fn detach(&mut self, port: PortId) {
        if let Some(exit) = self.exits.get_mut(usize::from(port.0)) {
            *exit = None;
        }
        self.ports.retain(|other| *other != port);
        self.touched.retain(|other| *other != port);
        self.fdb.forget(port);
    }

    /// What has been learned.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// Removes what has not been heard from for the ageing time.
    pub fn sweep(&mut self, now_s: u32) {
        self.fdb.sweep(now_s);
    }

    /// Sorts the frames that came from port `from` (at most 65,536) into the outboxes.
    pub fn forward(&mut self, from: PortId, frames: &[Frame], now_s: u32) -> Tally {
        self.empty_outboxes();
        let mut tally = Tally::default();
        for (place, frame) in frames.iter().enumerate().take(1 << 16) {
            let Some(header) = frame.head().first_chunk() else {
                tally.runts += 1;
                continue;
            };
            let (to, source) = Mac::pair(header);
            self.fdb.learn(Station::new(source, 0), from, now_s);
            tally.work |= frame.offload().is_work();
            if !to.is_group() {
                match self.fdb.lookup(Station::new(to, 0), now_s) {
                    Some(port) if port == from => {}
                    Some(port) => put(&mut self.exits, &mut self.touched, port, place, frame),
                    None => self.flood(from, place, frame),
                }
            } else if to.is_reserved() {
                tally.reserved += 1;
            } else {
                self.flood(from, place, frame);
            }
        }
        tally
    }

    /// Who is to be sent something of the last batch, each port once.
    pub fn sendings(&self) -> impl Iterator<Item = Sending<'_>> + '_ {
        self.touched.iter().filter_map(|port| {
            let exit = self.exits.get(usize::from(port.0))?.as_ref()?;
            Some(Sending { port: *port, outbox: &exit.outbox, too_long: exit.too_long })
        })
    }

    fn flood(&mut self, from: PortId, place: usize, frame: &Frame) {
        for port in &self.ports {
            if *port != from {
                put(&mut self.exits, &mut self.touched, *port, place, frame);
            }
        }
    }

    fn empty_outboxes(&mut self) {
        for port in self.touched.drain(..) {
            if let Some(Some(exit)) = self.exits.get_mut(usize::from(port.0)) {
                exit.outbox.clear();
                exit.too_long = 0;
            }
        }
    }
}

#[inline]
fn put(exits: &mut [Option<Exit>], touched: &mut Vec<PortId>, port: PortId, place: usize, frame: &Frame) {
    let Some(Some(exit)) = exits.get_mut(usize::from(port.0)) else {
        return;
    };
    if exit.outbox.is_empty() && exit.too_long == 0 {
        touched.push(port);
    }
    if frame.len() <= exit.max_len || frame.offload().gso.is_some() {
        exit.outbox.push(place as u16);
    } else {
        exit.too_long += 1;
    }
}

#[cfg(test)]
mod tests;
