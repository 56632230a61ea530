// Not a core: does I/O or calls a hypervisor.

//! One harness for the property test and the fuzz target: ports whose locks, capabilities and places change send any frames with any
//! offloads through the switch and the software offloads, and what each port is sent is checked.

use std::io;
use std::time::Duration;

use crate::fdb::{Kind, Limits, Mac, PortId, Station};
use crate::headers::Headers;
use crate::software_offload::{self, Outlet};
use crate::switch::{Switch, SwitchMirror, Turn};
use crate::vlan::InVlan;
use crate::{
    Batch, BridgeSetting, Caps, Csum, Flag, Flags, Frame, Frames, GroupFwdMask, Gso, GsoKind, Lock, Offload,
    PortSettings, Stats, StormLimits, Vlans, lock, offload,
};

/// Ports at most.
const PORTS: u16 = 5;
/// Bytes of the longest payload.
const MAX_PAYLOAD: usize = 4000;
/// Ethernet, IPv4 and TCP: what most scripts change a few bytes of.
const TCP_V4: &[u8] =
    b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0\x45\0\0\x28\0\x01\0\0\x40\x06\0\0\x0a\0\0\x01\x0a\0\0\x02\
    \x04\xd2\x10\xe1\0\0\0\x01\0\0\0\0\x50\x18\x02\0\0\0\0\0";
/// Ethernet, IPv6 and UDP.
const UDP_V6: &[u8] = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x86\xdd\x60\0\0\0\0\x08\x11\x40\
    \xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\x04\xd2\x10\xe1\0\x08\0\0";

/// The decisions of a script; zeros after its end.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn port(&mut self) -> PortId {
        PortId(u16::from(self.byte()) % PORTS)
    }

    fn lock(&mut self) -> Lock {
        Lock::ALL[self.below(4)]
    }

    fn flags(&mut self) -> Flags {
        let mut flags = Flags::default();
        if self.byte().is_multiple_of(4) {
            let bits = self.byte();
            Flag::ALL.into_iter().for_each(|flag| flags.set(flag, bits >> flag as usize & 1 == 1));
        }
        flags
    }

    fn storm(&mut self) -> StormLimits {
        if self.is() { StormLimits::GUEST } else { StormLimits::default() }
    }

    fn mac(&mut self) -> Mac {
        Mac::new([2, 0, 0, 0, 0, self.byte() % 4])
    }

    fn vlans(&mut self) -> Vlans {
        match self.below(8) {
            0 => Vlans::untagged(),
            1 => "5".parse().expect("a VLAN"),
            2 => "6p/5/1000-3000u".parse().expect("VLANs"),
            _ => Vlans::trunk(),
        }
    }

    fn caps(&mut self) -> Caps {
        let flags = self.byte();
        let has = |bit: u8| flags & 1 << bit != 0;
        let mtu = [68, 576, 1500, 9000][self.below(4)];
        let (csum_anywhere, sg, gso_v4, gso_v6) = (has(2), has(3), has(4), has(5));
        Caps { mtu, csum_v4: has(0), csum_v6: has(1), csum_anywhere, sg, gso_v4, gso_v6 }
    }

    fn settings(&mut self) -> PortSettings {
        let (address, storm) = (self.mac(), self.storm());
        let allowed = ["", "10.0.0.1 fd00::1", "0.0.0.0/0 ::/0"][self.below(3)].parse().expect("addresses");
        let (lock, vlans, flags) = (self.lock(), self.vlans(), self.flags());
        PortSettings {
            address: self.is().then_some(address),
            lock,
            allowed,
            vlans,
            flags,
            storm,
            ..PortSettings::default()
        }
    }

    fn frame(&mut self, into: &mut Frame) {
        let mut bytes = match self.byte() % 4 {
            0 => {
                let len = self.below(200).min(self.0.len());
                let (bytes, rest) = self.0.split_at(len);
                self.0 = rest;
                bytes.to_vec()
            }
            1 => UDP_V6.to_vec(),
            _ => TCP_V4.to_vec(),
        };
        for _ in 0..self.byte() % 4 {
            let (at, byte) = (usize::from(self.byte()), self.byte());
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
        }
        bytes.resize(bytes.len() + self.below(MAX_PAYLOAD), 0x5a);
        into.set_slice(&bytes);
        let csum = match self.byte() % 4 {
            0 => Some(Csum { start: self.below(300) as u16, offset: self.below(300) as u16 }),
            1 => None,
            _ => Headers::parse(into.head()).and_then(|headers| headers.csum()),
        };
        let kind = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][self.below(3)];
        let gso = self.is().then(|| Gso { kind, size: self.below(2000) as u16 });
        into.set_offload(Offload { csum, verified: self.is(), gso });
    }
}

/// What the harness knows of a port that is attached.
#[derive(Clone)]
struct Known {
    caps: Caps,
    settings: PortSettings,
}

/// Checks what a port is sent.
struct Checked {
    caps: Caps,
    frames: usize,
}

impl Outlet for Checked {
    fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        self.frames += frames.len();
        for frame in frames.iter() {
            assert!(offload::passes(frame, &self.caps), "{:?} to {:?}", frame.offload(), self.caps);
            assert!(
                frame.offload().gso.is_some() || frame.len() <= self.caps.max_len(),
                "{} bytes",
                frame.len()
            );
        }
        Ok(())
    }

    fn has_room(&self, _: &Frame) -> bool {
        true
    }
}

/// Runs a script.
///
/// # Panics
/// If a port is sent what it must not be.
pub fn hostile(script: &[u8]) {
    let mut choices = Choices(script);
    let is_wire = choices.byte().is_multiple_of(8);
    let mut switch = if is_wire { Switch::wire() } else { Switch::new(Limits::default(), 7) };
    let mut known = [const { None }; PORTS as usize];
    let mut now = Duration::ZERO;
    while !choices.0.is_empty() {
        let port = choices.port();
        let place = &mut known[usize::from(port.0)];
        match (choices.byte() % 16, place) {
            (_, place @ None) => {
                if switch.free_port_id().is_some() {
                    let attached = Known { caps: choices.caps(), settings: choices.settings() };
                    switch.attach(port, attached.caps, &attached.settings, now);
                    *place = Some(attached);
                }
            }
            (0, place) => {
                switch.detach(port);
                *place = None;
            }
            (1, Some(attached)) => {
                attached.settings.lock = choices.lock();
                switch.set_lock(port, attached.settings.lock, attached.settings.allowed.clone());
            }
            (2, Some(attached)) => {
                attached.caps = choices.caps();
                switch.set_caps(port, attached.caps);
            }
            (3, _) => {
                now += Duration::from_millis(u64::from(choices.byte()) * 5_000);
                switch.sweep(now.as_secs() as u32);
            }
            (4, Some(attached)) => {
                attached.settings.flags = choices.flags();
                switch.set_flags(port, attached.settings.flags);
            }
            (5, Some(attached)) => {
                attached.settings.vlans = choices.vlans();
                switch.set_vlans(port, attached.settings.vlans.clone());
            }
            (6, Some(_)) => switch.set_storm(port, choices.storm(), now),
            (7, Some(_)) => administrate(&mut choices, &mut switch, port, now),
            _ => forward(&mut choices, &mut switch, &known, port, now),
        }
    }
}

/// Changes what an administrator may.
fn administrate(choices: &mut Choices<'_>, switch: &mut Switch, port: PortId, now: Duration) {
    let now_s = now.as_secs() as u32;
    let station = (choices.mac(), [None, Some(0), Some(5), Some(4095)][choices.below(4)]);
    match choices.byte() % 8 {
        0 | 1 => {
            let kind = [Kind::Static, Kind::Sticky, Kind::Dynamic, Kind::Own][choices.below(4)];
            // Each of the refusals is as good.
            let _ = switch.fdb_add(station, (port, kind), choices.is(), now_s);
        }
        2 => drop(switch.fdb_delete(station, port, now_s)),
        3 => drop(switch.fdb_flush(|_, at, _| at == port)),
        4 => switch.set(match choices.below(3) {
            0 => BridgeSetting::AgeingTime(choices.byte().into()),
            1 => BridgeSetting::FdbMaxLearned(1 + u32::from(choices.byte())),
            _ => {
                let bits = u16::from_le_bytes([choices.byte(), choices.byte()]) & !7;
                BridgeSetting::GroupFwdMask(GroupFwdMask::new(bits).expect("bits 3 to 15"))
            }
        }),
        5 => switch.remove_mirror(choices.below(4)),
        // A wire has none, and a bridge a few.
        _ if switch.fdb().is_none() || switch.mirrors().len() >= 4 => {}
        _ => {
            let (src, dst) = (vec![choices.port()], vec![choices.port()]);
            let vlans = if choices.is() { vec![5] } else { vec![] };
            let all = choices.is();
            switch.add_mirror(SwitchMirror { all, src, dst, vlans, output: port, frames: 0, bytes: 0 });
        }
    }
}

/// Has a port send some frames.
fn forward(
    choices: &mut Choices<'_>,
    switch: &mut Switch,
    known: &[Option<Known>],
    from: PortId,
    now: Duration,
) {
    let mut batch = Batch::new(1 + choices.below(6));
    while let Some(frame) = batch.slot() {
        choices.frame(frame);
    }
    let summary = switch.forward(from, batch.frames(), Turn::at(now));
    assert_eq!(summary.taken, batch.len(), "the turn had no bounds");
    let Some(sender) = &known[usize::from(from.0)] else { panic!("only attached ports send") };
    for egress in switch.egresses() {
        let Some(to) = &known[usize::from(egress.port.0)] else {
            panic!("{:?} is not attached", egress.port)
        };
        let frames = egress.batch.view(&batch);
        let is_output = |port| switch.mirrors().iter().any(|mirror| mirror.output == port);
        assert_eq!(egress.are_copies, is_output(egress.port));
        assert!(!is_output(from) || egress.batch.is_empty(), "from an output of mirrors");
        let mut retagged = Batch::new(batch.len());
        if egress.has_other_tags || known.iter().flatten().any(|port| port.settings.vlans.are_given()) {
            let sent = switch.retag(egress.port, &batch, &mut retagged);
            if switch.fdb().is_some() && !egress.are_copies {
                let pairs = frames.iter().zip(sent.iter());
                pairs.for_each(|(frame, sent)| {
                    check_vlan(frame, sent, &sender.settings.vlans, &to.settings.vlans)
                });
            }
        }
        let frames = if egress.has_other_tags { retagged.all() } else { frames };
        let flags = (sender.settings.flags, to.settings.flags);
        if egress.are_copies {
        } else if switch.fdb().is_some() {
            assert!(egress.port != from || flags.0.has(Flag::Hairpin), "a frame came back");
            let are_isolated = flags.0.has(Flag::Isolated) && flags.1.has(Flag::Isolated);
            assert!(frames.is_empty() || !are_isolated, "from one isolated port to another");
        } else {
            assert!(egress.port != from, "a frame came back");
        }
        assert!(
            frames.is_empty() || egress.are_copies || to.settings.lock != Lock::Disabled,
            "to a disabled port"
        );
        egress.batch.view(&batch).iter().for_each(|frame| check(switch, frame, from, &sender.settings, now));
        let mut outlet = Checked { caps: to.caps, frames: 0 };
        software_offload::send(&to.caps, &Stats::default(), frames, &mut Batch::new(4), &mut outlet)
            .expect("the outlet does not fail");
        // The most segments are those of the least size, or those of UDP.
        assert!(outlet.frames <= frames.len() * 128, "{} frames of {}", outlet.frames, frames.len());
    }
}

/// Checks that a frame is in a VLAN of both ports, and has that one's tag where the receiver's has one.
fn check_vlan(frame: &Frame, sent: &Frame, from: &Vlans, to: &Vlans) {
    let InVlan { vlan, .. } = from.classify(frame).expect("only what is in a VLAN of its port is forwarded");
    assert!(to.has(vlan), "in VLAN {vlan} to {to}");
    let tag = sent.head().get(12..16).filter(|tag| tag[..2] == [0x81, 0]);
    let tag = tag.map(|tag| u16::from_be_bytes([tag[2], tag[3]]) & 0xfff);
    match to.is_untagged(vlan) {
        true => assert_eq!(tag, None, "in VLAN {vlan} to {to}"),
        false => assert_eq!(tag, Some(vlan)),
    }
}

/// Checks that a frame may have come from a port.
fn check(switch: &Switch, frame: &Frame, from: PortId, sender: &PortSettings, now: Duration) {
    let header = frame.head().first_chunk().expect("no runt is forwarded");
    let (to, source) = Mac::pair(header);
    match sender.lock {
        Lock::Off => {}
        Lock::Mac => assert_eq!(Some(source), sender.address, "locked"),
        Lock::Ip => {
            assert_eq!(Some(source), sender.address, "locked");
            assert_eq!(lock::check(frame, source, &sender.allowed), Ok(()));
        }
        Lock::Disabled => panic!("from a disabled port"),
    }
    if let Some(fdb) = switch.fdb() {
        assert!(!source.is_group() && source != Mac::ZERO, "from {source:?}, which no station has");
        let mask = switch.info().map_or(0, |info| info.group_fwd_mask.bits());
        assert!(!to.is_reserved() || mask >> to.link_local_group() & 1 == 1, "to {to:?}");
        assert!(!to.is_bpdus() || !sender.flags.has(Flag::Guard), "to {to:?} in spite of the guard");
        let vlan = sender.vlans.classify(frame).map_or(0, |class| class.vlan);
        let station = Station::new(source, vlan);
        let is_known = fdb.entry(station, now.as_secs() as u32).is_some_and(|entry| entry.port == from);
        let may_be_unknown = !sender.flags.has(Flag::Locked) || to.is_reserved();
        assert!(
            is_known || may_be_unknown || sender.address == Some(source),
            "from {source} at a locked port"
        );
        let owner = fdb.owner(station, now.as_secs() as u32);
        // Two ports may have been given one address.
        let is_its_own = sender.address == Some(source);
        assert!(is_its_own || owner.is_none_or(|owner| owner == from), "from the address of {owner:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 2_000 }))]

        #[test]
        fn ports_are_sent_what_they_take_from_whoever_may_send_it(script in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::hostile(&script);
        }
    }
}
