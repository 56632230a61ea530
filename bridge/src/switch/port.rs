//! A port as the switch knows it: what it may send, what it takes, and the frames of the current batch that go to it.

use std::time::Duration;

use event_loop::TokenBucket;

use super::At;
use crate::{
    Addresses, Caps, DropReason, Flag, Flags, Flood, Frame, Gso, GsoKind, Lock, PortBatch, PortSettings,
    StormLimits, Vlans,
    fdb::Mac,
    lock, segment,
    vlan::{InVlan, Retag},
};

/// Bytes that a frame's way costs as much time as copying them, beside its own.
pub(crate) const FRAME_COST: u64 = 1 << 10;
/// The same of a segment that is to be made.
const SEGMENT_COST: u64 = 2 << 10;
/// The smallest segments that a port of a usual mtu may ask for: the least maximum segment size that a host should be asked for
/// by another, an mtu of 256 without 40 bytes of headers. FreeBSD accepts no less (`TCP_MINMSS`, sys/netinet/tcp.h), and what
/// Linux says of its own (`net.ipv4.route.min_adv_mss`, 256) is no less with all of TCP's options. Linux sends 48 bytes
/// (`TCP_MIN_SND_MSS`), of which a frame of 65,535 has 1,365 segments.
const SEGMENT_MIN: u16 = 216;
/// A port's own address is known in so many VLANs at most.
const OWN_VLANS: u32 = 64;
/// Bytes of the longest headers of IPv4 without options and TCP: a port of a small mtu has segments as short as that leaves.
const HEADERS_MAX: u32 = 20 + 60;

/// A port.
#[derive(Debug)]
pub(super) struct SwitchPort {
    caps: Caps,
    max_len: usize,
    sender: Sender,
    /// What was set; an output of mirrors is as one that is disabled.
    lock: Lock,
    is_output: bool,
    allowed: Addresses,
    vlans: Vlans,
    storm: Storm,
    pub(super) batch: PortBatch,
    pub(super) too_long: u64,
    /// Frames that are not sent to the port as it is disabled.
    pub(super) locked: u64,
    /// Frames of the current batch are to be sent to the port with other tags.
    pub(super) has_other_tags: bool,
    /// There is anything of the current batch for the port.
    is_touched: bool,
}

/// What is asked of a port for each frame that it sends: a copy of it serves a whole batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) address: Option<Mac>,
    lock: Lock,
    pub(super) flags: Flags,
    /// More of each frame is looked at than where it is from.
    looks_inside: bool,
    /// The sources of its frames are learned, and none is refused for not being known.
    learns: bool,
    /// Bytes of the smallest TCP segments that it may ask for.
    segment_min: u16,
}

/// What a port may still send to many.
#[derive(Debug, Default)]
struct Storm {
    broadcast: Option<TokenBucket>,
    multicast: Option<TokenBucket>,
    unknown_unicast: Option<TokenBucket>,
}

impl Storm {
    fn new(limits: StormLimits, now: Duration) -> Storm {
        let bucket = |flood| {
            let limit: u64 = limits.get(flood)?.into();
            Some(TokenBucket::new(limit, 2 * limit, now))
        };
        Storm {
            broadcast: bucket(Flood::Broadcast),
            multicast: bucket(Flood::Multicast),
            unknown_unicast: bucket(Flood::UnknownUnicast),
        }
    }
}

impl SwitchPort {
    pub(super) fn new(caps: Caps, settings: &PortSettings, now: Duration) -> SwitchPort {
        SwitchPort {
            caps,
            max_len: caps.max_len(),
            sender: Sender {
                address: settings.address,
                lock: settings.lock,
                flags: settings.flags,
                looks_inside: false,
                learns: false,
                segment_min: segment_min(&caps),
            }
            .prepared(),
            lock: settings.lock,
            is_output: false,
            allowed: settings.allowed.clone(),
            vlans: settings.vlans.clone(),
            storm: Storm::new(settings.storm, now),
            batch: PortBatch::default(),
            too_long: 0,
            locked: 0,
            is_touched: false,
            has_other_tags: false,
        }
    }

    pub(super) fn set_caps(&mut self, caps: Caps) {
        self.caps = caps;
        self.max_len = caps.max_len();
        self.sender.segment_min = segment_min(&caps);
    }

    pub(super) fn set_lock(&mut self, lock: Lock, allowed: Addresses) {
        self.lock = lock;
        self.allowed = allowed;
        self.set_output(self.is_output);
    }

    /// Makes the port an output of mirrors, or none.
    pub(super) fn set_output(&mut self, is_output: bool) {
        self.is_output = is_output;
        let lock = if is_output { Lock::Disabled } else { self.lock };
        self.sender = Sender { lock, ..self.sender }.prepared();
    }

    pub(super) fn is_output(&self) -> bool {
        self.is_output
    }

    /// Whether the last frame of the current batch for the port is that at `index`.
    pub(super) fn has_last(&self, index: usize) -> bool {
        self.batch.indices().last().is_some_and(|last| usize::from(*last) == index)
    }

    /// Adds a copy of a frame of the current batch, unless there is one.
    pub(super) fn put_copy(&mut self, at: At, frame: &Frame, is_vlan_aware: bool) -> Option<Put> {
        if self.has_last(at.index) {
            return None;
        }
        let retag = if is_vlan_aware { self.vlans.retag(at.in_vlan) } else { Retag::Keep };
        self.has_other_tags |= retag != Retag::Keep;
        Some(self.add(at.index, frame, retag.growth()))
    }

    /// Checks a frame of this port by what [`Flag::Guard`] and [`Lock::Ip`] let it send.
    pub(super) fn check_inside(&self, to: Mac, frame: &Frame) -> Result<(), DropReason> {
        if self.sender.flags.has(Flag::Guard) && to.is_bpdus() {
            return Err(DropReason::Guard);
        }
        match self.sender.lock {
            Lock::Ip => lock::check(frame, self.sender.address.unwrap_or(Mac::ZERO), &self.allowed),
            _ => Ok(()),
        }
    }

    pub(super) fn set_flags(&mut self, flags: Flags) {
        self.sender = Sender { flags, ..self.sender }.prepared();
    }

    pub(super) fn set_storm(&mut self, limits: StormLimits, now: Duration) {
        self.storm = Storm::new(limits, now);
    }

    pub(super) fn set_vlans(&mut self, vlans: Vlans) {
        self.vlans = vlans;
    }

    #[inline]
    pub(super) fn vlans(&self) -> &Vlans {
        &self.vlans
    }

    /// The VLANs in which the port's own address is known without having been seen.
    pub(super) fn own_vlans(&self) -> impl Iterator<Item = u16> + '_ {
        let all = (self.vlans.count() <= OWN_VLANS).then(|| self.vlans.iter());
        let first = all.is_none().then(|| self.vlans.pvid()).flatten();
        first.into_iter().chain(all.into_iter().flatten())
    }

    /// Whether it is known there: a port that is in many VLANs would take the table's places.
    #[inline]
    pub(super) fn is_own_vlan(&self, vlan: u16) -> bool {
        Some(vlan) == self.vlans.pvid() || self.vlans.count() <= OWN_VLANS
    }

    #[inline]
    pub(super) fn sender(&self) -> Sender {
        self.sender
    }

    /// Takes a frame that goes to many ports from what the port may send so.
    pub(super) fn may_flood(&mut self, flood: Flood, frame: &Frame, now: Duration) -> Result<(), DropReason> {
        let bucket = match flood {
            Flood::Broadcast => &mut self.storm.broadcast,
            Flood::Multicast => &mut self.storm.multicast,
            Flood::UnknownUnicast => &mut self.storm.unknown_unicast,
        };
        match bucket.as_mut().is_none_or(|bucket| bucket.take(segment::wire_frames(frame), now)) {
            true => Ok(()),
            false => Err(flood.beyond_limit()),
        }
    }

    /// Whether a frame that is flooded is sent to the port too.
    #[inline]
    pub(super) fn takes_flood(&self, flood: Flood, vlan: u16) -> bool {
        let flag = match flood {
            Flood::Broadcast => Flag::BcastFlood,
            Flood::Multicast => Flag::McastFlood,
            Flood::UnknownUnicast => Flag::Flood,
        };
        if !self.sender.flags.has(flag) {
            return false;
        }
        match self.sender.lock {
            Lock::Off => true,
            Lock::Mac | Lock::Ip => flood != Flood::UnknownUnicast || !self.is_own_vlan(vlan),
            Lock::Disabled => false,
        }
    }

    /// Adds a frame of the current batch that is in a VLAN; `None` if the port does not take it.
    #[inline]
    pub(super) fn put_in_vlan(&mut self, index: usize, frame: &Frame, class: InVlan) -> Option<Put> {
        if !self.vlans.takes(class) {
            return None;
        }
        let retag = self.vlans.retag(class);
        self.has_other_tags |= retag != Retag::Keep;
        Some(self.put(index, frame, retag.growth()))
    }

    /// Adds a frame of the current batch, which is to grow by that many bytes; returns whether it is the first, and what sending
    /// it costs.
    #[inline]
    pub(super) fn put(&mut self, index: usize, frame: &Frame, growth: usize) -> Put {
        if self.sender.lock == Lock::Disabled {
            self.locked += 1;
            return Put { is_first: !std::mem::replace(&mut self.is_touched, true), cost: 0 };
        }
        self.add(index, frame, growth)
    }

    #[inline]
    fn add(&mut self, index: usize, frame: &Frame, growth: usize) -> Put {
        let is_first = !std::mem::replace(&mut self.is_touched, true);
        let gso = frame.offload().gso;
        if frame.len() + growth > self.max_len && gso.is_none() {
            self.too_long += 1;
            return Put { is_first, cost: 0 };
        }
        self.batch.push(index as u16);
        let segments = match gso {
            Some(gso) if !self.caps.takes_gso(gso.kind) => segment::wire_frames(frame),
            _ => 0,
        };
        Put { is_first, cost: FRAME_COST + frame.len() as u64 + segments * SEGMENT_COST }
    }

    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.too_long = 0;
        self.locked = 0;
        self.is_touched = false;
        self.has_other_tags = false;
    }
}

impl Sender {
    /// Whether the port may send a frame from this address.
    #[inline]
    pub(super) fn may_send_from(&self, source: Mac) -> bool {
        match self.lock {
            Lock::Off => true,
            Lock::Mac | Lock::Ip => self.address == Some(source),
            Lock::Disabled => false,
        }
    }

    /// Whether frames from this port are sent to the other one.
    #[inline]
    pub(super) fn reaches(&self, other: &Sender) -> bool {
        !(self.flags.has(Flag::Isolated) && other.flags.has(Flag::Isolated))
    }

    /// With what is asked for each frame worked out.
    fn prepared(self) -> Sender {
        let Sender { lock, flags, .. } = self;
        let looks_inside = lock == Lock::Ip || flags.has(Flag::Guard);
        Sender { looks_inside, learns: flags.has(Flag::Learning) && !flags.has(Flag::Locked), ..self }
    }

    /// Whether more of a frame is looked at than where it is from.
    #[inline]
    pub(super) fn looks_inside(&self) -> bool {
        self.looks_inside
    }

    /// Whether the sources of its frames are learned whatever they are.
    #[inline]
    pub(super) fn learns(&self) -> bool {
        self.learns
    }

    /// Whether the port may ask for these segments. Of UDP their number is bounded.
    #[inline]
    pub(super) fn may_ask_for(&self, gso: Gso) -> bool {
        gso.kind == GsoKind::Udp || gso.size >= self.segment_min
    }
}

fn segment_min(caps: &Caps) -> u16 {
    let least = caps.mtu.saturating_sub(HEADERS_MAX).clamp(segment::MIN_SIZE.into(), SEGMENT_MIN.into());
    least as u16
}

/// What became of [`SwitchPort::put`].
pub(super) struct Put {
    /// There was nothing for the port before.
    pub(super) is_first: bool,
    /// In bytes whose copying takes as long.
    pub(super) cost: u64,
}
