//! The switch as a value: it takes the frames of one port and decides which of them go to which other port.
//!
//! A learning switch is an Ethernet bridge: it sends a frame to the port where its destination was last seen, and does not
//! forward reserved group addresses of IEEE 802.1D. A wire joins two ports as a cable does: whatever comes in at one end goes out
//! at the other, so that 802.1X, LLDP, STP and LACP pass, and a guest that sniffs a mirrored port hears everything.
//!
//! It does no I/O, reads no clock and allocates only while it grows. It reads only the frames' private heads.

mod announce;
mod attach;
mod learn;
mod mirrors;
mod port;
mod settings;

use std::time::Duration;

use crate::{
    Batch, DropReason, Flag, Flood, Frame, Frames, GroupFwdMask, PortBatch, config,
    fdb::{Fdb, Limits, Mac, PortId, Station},
    vlan::InVlan,
};
use learn::learn;
pub use mirrors::SwitchMirror;
use port::{Put, Sender, SwitchPort};

/// What became of a batch, beside the frames for each port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSummary {
    /// Number of frames that were looked at, from the first on: fewer than all if the turn's budget was used up.
    pub taken: usize,
    /// What sending them costs, in bytes whose copying takes as long.
    pub cost: u64,
    /// Stations that were seen at another port before.
    pub moves: u64,
    /// Whether any frame has a checksum or a segmentation to be done.
    pub offloads: bool,
    /// Whether all frames that are forwarded go to all ports.
    pub flooded: bool,
    drops: [u32; DropReason::ALL.len()],
    any_drop: bool,
}

impl BatchSummary {
    /// Number of frames that were dropped at the port that they came from, for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].into()
    }

    /// The reasons for which frames were dropped at the port that they came from, with their numbers.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let reasons = if self.any_drop { &DropReason::ALL[..] } else { &[] };
        reasons.iter().map(|reason| (*reason, self.dropped(*reason)))
    }

    #[cold]
    fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        self.any_drop = true;
    }
}

/// When frames of a port are looked at, and how much may be done for them.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// The time, from any start.
    pub now: Duration,
    /// No further frame is looked at once sending those before costs this much, in bytes whose copying takes as long.
    pub budget: u64,
}

impl Turn {
    /// A turn without bounds.
    pub const fn at(now: Duration) -> Turn {
        Turn { now, budget: u64::MAX }
    }
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
    /// Number of frames dropped because the port is disabled.
    pub locked: u64,
    /// Some of the frames are to have another VLAN tag, or none.
    pub(crate) has_other_tags: bool,
    /// The frames are copies for a mirror's output, which nobody waits for.
    pub(crate) are_copies: bool,
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
/// use bridge::{Batch, Caps, PortSettings, fdb::{Limits, PortId}, switch::{Switch, Turn}};
/// use std::time::Duration;
///
/// let mut switch = Switch::new(Limits::default(), 0x5eed);
/// let settings = PortSettings::default();
/// (0..3).for_each(|port| switch.attach(PortId(port), Caps::plain(1500), &settings, Duration::ZERO));
/// let mut batch = Batch::new(1);
/// batch.slot().unwrap().set_slice(&[&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0; 48]].concat());
/// switch.forward(PortId(0), batch.frames(), Turn::at(Duration::ZERO));
/// let ports: Vec<_> = switch.egresses().map(|egress| egress.port).collect();
/// assert_eq!(ports, [PortId(1), PortId(2)]);
/// ```
#[derive(Debug)]
pub struct Switch {
    forwarding: Forwarding,
    switch_ports: Vec<Option<SwitchPort>>,
    ports: Vec<PortId>,
    /// The ports that the current batch has frames for.
    touched: Vec<PortId>,
    /// A port's VLANs were given, so that every frame is in one.
    is_vlan_aware: bool,
    /// Frames are in VLANs, or are mirrored.
    is_watched: bool,
    mirrors: Vec<SwitchMirror>,
    /// The VLANs of the current batch's frames, where they are in any.
    in_vlans: Vec<InVlan>,
    group_fwd_mask: GroupFwdMask,
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
        Switch {
            forwarding,
            switch_ports: Vec::new(),
            ports: Vec::new(),
            touched: Vec::new(),
            is_vlan_aware: false,
            is_watched: false,
            mirrors: Vec::new(),
            in_vlans: Vec::new(),
            group_fwd_mask: GroupFwdMask::default(),
        }
    }

    /// The most ports that can be attached: the two ends of a wire, or 65,536.
    pub fn max_ports(&self) -> usize {
        match self.forwarding {
            Forwarding::Learning(_) => 1 << 16,
            Forwarding::Wire => 2,
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
    pub fn forward(&mut self, from: PortId, frames: &[Frame], turn: Turn) -> BatchSummary {
        self.clear_batches();
        let mut summary = BatchSummary { flooded: true, ..BatchSummary::default() };
        let Some(Some(port)) = self.switch_ports.get(usize::from(from.0)) else { return summary };
        let sender = port.sender();
        for (index, frame) in frames.iter().enumerate().take(1 << 16) {
            if summary.cost >= turn.budget {
                break;
            }
            summary.taken += 1;
            let mut at = At { index, in_vlan: InVlan::default() };
            let decision = self.decide(from, &sender, frame, turn.now, &mut at, &mut summary);
            match decision {
                Ok(Decision::Port(port)) => {
                    summary.flooded = false;
                    self.put(port, &sender, at, frame, &mut summary);
                }
                Ok(Decision::Flood(flood)) => self.flood(from, &sender, flood, at, frame, &mut summary),
                Ok(Decision::Back) => {}
                Err(reason) => summary.drop(reason),
            }
            if self.is_watched {
                self.in_vlans.push(at.in_vlan);
                if !self.mirrors.is_empty() && decision.is_ok() {
                    self.mirror(from, at, frame, &mut summary);
                }
            }
        }
        summary
    }

    /// Learns the source of a frame, and decides where the frame goes.
    #[inline]
    fn decide(
        &mut self,
        from: PortId,
        sender: &Sender,
        frame: &Frame,
        now: Duration,
        at: &mut At,
        summary: &mut BatchSummary,
    ) -> Result<Decision, DropReason> {
        let header = frame.head().first_chunk().ok_or(DropReason::Runt)?;
        let (to, source) = Mac::pair(header);
        if !sender.may_send_from(source) {
            return Err(DropReason::Lock);
        }
        if sender.looks_inside() {
            self.check_inside(from, to, frame)?;
        }
        let mut is_own = sender.address == Some(source);
        if self.is_vlan_aware {
            is_own &= self.classify(from, frame, at)?;
        }
        let offload = frame.offload();
        if offload.is_work() {
            summary.offloads = true;
            if offload.gso.is_some_and(|gso| !sender.may_ask_for(gso)) {
                return Err(DropReason::SmallSegments);
            }
        }
        let Forwarding::Learning(fdb) = &mut self.forwarding else { return Ok(Decision::Flood(None)) };
        let vlan = at.in_vlan.vlan;
        if !is_own {
            learn(fdb, Station::new(source, vlan), to, (from, sender), now, summary)?;
        }
        let flood = if to.is_group() {
            if to.is_reserved() && !self.group_fwd_mask.has(to.link_local_group()) {
                return Err(DropReason::Reserved);
            }
            Flood::to_group(to)
        } else {
            match fdb.lookup(Station::new(to, vlan), now.as_secs() as u32) {
                Some(port) if port == from && !sender.flags.has(Flag::Hairpin) => return Ok(Decision::Back),
                Some(port) => return Ok(Decision::Port(port)),
                None => Flood::UnknownUnicast,
            }
        };
        if let Some(Some(port)) = self.switch_ports.get_mut(usize::from(from.0)) {
            port.may_flood(flood, frame, now)?;
        }
        Ok(Decision::Flood(Some(flood)))
    }

    /// Finds a frame's VLAN; `true` if the address of the port that it is from is known there without having been seen.
    #[inline(never)]
    fn classify(&self, from: PortId, frame: &Frame, at: &mut At) -> Result<bool, DropReason> {
        let port = self.switch_ports.get(usize::from(from.0)).and_then(Option::as_ref);
        let Some(port) = port else { return Ok(true) };
        at.in_vlan = port.vlans().classify(frame)?;
        Ok(port.is_own_vlan(at.in_vlan.vlan))
    }

    #[inline(never)]
    fn check_inside(&self, from: PortId, to: Mac, frame: &Frame) -> Result<(), DropReason> {
        let port = self.switch_ports.get(usize::from(from.0)).and_then(Option::as_ref);
        port.map_or(Ok(()), |port| port.check_inside(to, frame))
    }

    fn flood(
        &mut self,
        from: PortId,
        sender: &Sender,
        flood: Option<Flood>,
        at: At,
        frame: &Frame,
        summary: &mut BatchSummary,
    ) {
        let Switch { switch_ports, ports, touched, is_vlan_aware, .. } = self;
        let may_return = flood.is_some() && sender.flags.has(Flag::Hairpin);
        for port in ports.iter().filter(|port| **port != from || may_return) {
            let Some(Some(egress)) = switch_ports.get_mut(usize::from(port.0)) else { continue };
            let takes =
                |flood| egress.takes_flood(flood, at.in_vlan.vlan) && sender.reaches(&egress.sender());
            if flood.is_none_or(takes) {
                let put = put(egress, at, frame, *is_vlan_aware);
                record(put, *port, touched, summary);
            }
        }
    }

    #[inline]
    fn put(&mut self, port: PortId, sender: &Sender, at: At, frame: &Frame, summary: &mut BatchSummary) {
        if let Some(Some(egress)) = self.switch_ports.get_mut(usize::from(port.0))
            && sender.reaches(&egress.sender())
        {
            let put = put(egress, at, frame, self.is_vlan_aware);
            record(put, port, &mut self.touched, summary);
        }
    }

    /// Copies the frames of the last batch for a port into another one, where they have the tags that the port is to be sent.
    pub(crate) fn retag<'a>(&self, port: PortId, batch: &Batch, into: &'a mut Batch) -> Frames<'a> {
        into.clear();
        let Some(Some(egress)) = self.switch_ports.get(usize::from(port.0)) else { return into.all() };
        for index in egress.batch.indices().iter().map(|index| usize::from(*index)) {
            let Some((frame, in_vlan)) = batch.frames().get(index).zip(self.in_vlans.get(index)) else {
                continue;
            };
            let Some(slot) = into.slot() else { break };
            slot.copy_from(frame);
            egress.vlans().retag(*in_vlan).apply(slot);
        }
        into.all()
    }

    /// The ports that the last batch has frames for, each once.
    pub fn egresses(&self) -> impl Iterator<Item = Egress<'_>> + '_ {
        self.touched.iter().filter_map(|port| {
            let egress = self.switch_ports.get(usize::from(port.0))?.as_ref()?;
            Some(Egress {
                port: *port,
                batch: &egress.batch,
                too_long: egress.too_long,
                locked: egress.locked,
                has_other_tags: egress.has_other_tags,
                are_copies: egress.is_output(),
            })
        })
    }

    fn clear_batches(&mut self) {
        self.in_vlans.clear();
        for port in self.touched.drain(..) {
            if let Some(Some(egress)) = self.switch_ports.get_mut(usize::from(port.0)) {
                egress.clear();
            }
        }
    }
}

/// What is done with a frame that is not dropped.
#[derive(Clone, Copy)]
enum Decision {
    Port(PortId),
    /// To all ports but its own; by a wire for no reason.
    Flood(Option<Flood>),
    /// Not forwarded, as its destination is where it comes from.
    Back,
}

/// A frame of the current batch.
#[derive(Clone, Copy)]
struct At {
    index: usize,
    /// Where the switch is aware of VLANs.
    in_vlan: InVlan,
}

#[inline]
fn put(egress: &mut SwitchPort, at: At, frame: &Frame, is_vlan_aware: bool) -> Option<Put> {
    match is_vlan_aware {
        true => egress.put_in_vlan(at.index, frame, at.in_vlan),
        false => Some(egress.put(at.index, frame, 0)),
    }
}

#[inline]
fn record(put: Option<Put>, port: PortId, touched: &mut Vec<PortId>, summary: &mut BatchSummary) {
    let Some(put) = put else { return };
    if put.is_first {
        touched.push(port);
    }
    summary.cost += put.cost;
}

#[cfg(test)]
mod flag_tests;
#[cfg(test)]
mod mirror_tests;
#[cfg(test)]
mod ovs_tests;
#[cfg(test)]
mod station_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vlan_tests;
