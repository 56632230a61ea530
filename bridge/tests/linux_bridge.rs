//! Linux's bridge beside ours: with the same flags, entries and settings both send the same frames to the same ports, and refuse the same
//! entries. Where ours is another on purpose (docs/decisions/0029-a-ports-stations-and-copies.md) nothing is compared. `XPV_ROUNDS=5000` compares more.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bridge::fdb::{Kind, Limits, Mac, PortId, Station};
use bridge::port::packet::Packet;
use bridge::switch::{Switch, Turn};
use bridge::{Batch, BridgeSetting, Caps, Flag, Flags, Frame, GroupFwdMask, Port, PortSettings};
use common::host::{in_namespaces, sh};
use common::{BOUND, send_all, until};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use testkit::random::bytes;

const PORTS: usize = 3;
const FRAMES: usize = 24;
const STATIONS: usize = 5;
/// What frames that are sent to tell when the others have come begin with.
const MARK: [u8; 6] = [2, 0xff, 0, 0, 0, 0];

/// Choices.
struct Random(std::vec::IntoIter<u8>);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.0.next().expect("bytes for all choices")) % bound
    }
}

fn station(n: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, n as u8]
}

/// The kernel's bridge.
struct Theirs {
    /// The ends beyond its ports.
    ends: Vec<Packet>,
    /// The ports, by which an end is sent a frame that crosses no bridge.
    ports: Vec<Packet>,
}

impl Theirs {
    fn new() -> Theirs {
        // All frames are of one processor's queue, and so in order.
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
        let mut one = CpuSet::new();
        one.set(first).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        sh("ip link add br0 type bridge vlan_default_pvid 0 mcast_snooping 0
            for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -w $file ] || echo 0 > $file; done
            for n in 0 1 2; do ip link add v$n type veth peer name p$n; done
            for name in br0 v0 p0 v1 p1 v2 p2; do echo 1 > /proc/sys/net/ipv6/conf/$name/disable_ipv6; done
            for n in 0 1 2; do ip link set p$n master br0; ip link set v$n up; ip link set p$n up; done
            ip link set br0 up");
        // The kernel learns of carriers by a thread of its own.
        until("ends are up and ports forward", || {
            let is_up = |n| sh(&format!("ip -brief link show v{n}")).contains(" UP ");
            let forwards = |n| sh(&format!("bridge link show dev p{n}")).contains(" state forwarding ");
            (0..PORTS).all(|n| is_up(n) && forwards(n)).then_some(())
        });
        let open = |side| (0..PORTS).map(|n| Packet::open(&format!("{side}{n}")).unwrap()).collect();
        Theirs { ends: open("v"), ports: open("p") }
    }

    /// Runs a command of iproute2's; whether it succeeded.
    fn try_run(command: &str) -> bool {
        sh(&format!("if {command} 2> /dev/null; then echo yes; else echo no; fi")).trim() == "yes"
    }

    /// Sends frames by their ports, and returns for each the ends where it came.
    fn send(&mut self, frames: &[(usize, Frame)]) -> BTreeMap<u32, BTreeSet<u16>> {
        for (from, frame) in frames {
            send_all(&mut self.ends[*from], std::slice::from_ref(frame));
        }
        let mut came: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
        for end in 0..PORTS {
            // After the first mark all frames have crossed the bridge; before the second one they have come.
            for mark in 0..2 {
                let frame =
                    Frame::from_slice(&[&MARK[..], &[2, 0xfe, 0, 0, 0, mark, 0x88, 0xb5], &[0; 46]].concat());
                send_all(&mut self.ports[end], &[frame]);
                self.until_mark(end, mark, &mut came);
            }
        }
        came
    }

    fn until_mark(&mut self, end: usize, mark: u8, came: &mut BTreeMap<u32, BTreeSet<u16>>) {
        let mut batch = Batch::new(64);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < BOUND, "no mark at {end} within {BOUND:?}");
            self.ends[end].recv(&mut batch).unwrap();
            let mut is_there = false;
            for head in batch.frames().iter().map(Frame::head) {
                if head[..6] == MARK {
                    is_there |= head[11] == mark;
                } else if head[12..14] == [0x88, 0xb5] {
                    let number = u32::from_be_bytes(*head[14..].first_chunk().unwrap());
                    came.entry(number).or_default().insert(end as u16);
                }
            }
            batch.clear();
            if is_there {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Ours, and what is set for its ports.
struct Ours {
    switch: Switch,
    flags: [Flags; PORTS],
}

impl Ours {
    fn new() -> Ours {
        let mut switch = Switch::new(Limits::default(), 1);
        for port in 0..PORTS as u16 {
            switch.attach(PortId(port), Caps::plain(1500), &PortSettings::default(), Duration::ZERO);
        }
        Ours { switch, flags: [Flags::default(); PORTS] }
    }

    fn send(&mut self, from: usize, frame: &Frame) -> BTreeSet<u16> {
        let frames = std::slice::from_ref(frame);
        self.switch.forward(PortId(from as u16), frames, Turn::at(Duration::ZERO));
        let egresses = self.switch.egresses().filter(|egress| !egress.batch.is_empty());
        egresses.map(|egress| egress.port.0).collect()
    }

    /// Whether a frame is treated as Linux treats it.
    fn is_comparable(&self, from: usize, source: [u8; 6], to: [u8; 6]) -> bool {
        let owner = self.switch.fdb().unwrap().owner(Station::new(Mac::new(source), 0), 0);
        let is_link_local = to[..5] == [1, 0x80, 0xc2, 0, 0];
        owner.is_none_or(|owner| usize::from(owner.0) == from)
            && !(is_link_local && self.flags[from].has(Flag::Locked))
    }
}

/// Changes one thing in both.
fn change(random: &mut Random, ours: &mut Ours) {
    let port = random.below(PORTS);
    let id = PortId(port as u16);
    let mac = station(random.below(STATIONS));
    let text = Mac::new(mac).to_string();
    match random.below(8) {
        0..4 => {
            // Its protocol is not there to guard.
            let flag = Flag::ALL[random.below(Flag::ALL.len())];
            if flag != Flag::Guard {
                let on = !ours.flags[port].has(flag);
                ours.flags[port].set(flag, on);
                ours.switch.set_flags(id, ours.flags[port]);
                sh(&format!("bridge link set dev p{port} {} {}", flag.name(), Flags::text(on)));
            }
        }
        4 | 5 => {
            let (kind, state) = [
                (Kind::Static, "static sticky"),
                (Kind::Sticky, "dynamic sticky"),
                (Kind::Dynamic, "dynamic"),
            ][random.below(3)];
            let (replaces, verb) = [(false, "add"), (true, "replace")][random.below(2)];
            let added = ours.switch.fdb_add((Mac::new(mac), None), (id, kind), replaces, 0);
            let command = format!("bridge fdb {verb} {text} dev p{port} master {state}");
            assert_eq!(added.is_ok(), Theirs::try_run(&command), "{command}: {added:?}");
        }
        6 => {
            let deleted = ours.switch.fdb_delete((Mac::new(mac), None), id, 0);
            let command = format!("bridge fdb del {text} dev p{port} master");
            assert_eq!(deleted.is_ok(), Theirs::try_run(&command), "{command}: {deleted:?}");
        }
        _ => {
            let bits = [0u16, 0x4000, 0x8, 0x400c, 0x1, 0x2][random.below(6)];
            let mask = GroupFwdMask::new(bits);
            let command = format!("ip link set br0 type bridge group_fwd_mask {bits}");
            assert_eq!(mask.is_ok(), Theirs::try_run(&command), "{command}: {mask:?}");
            if let Ok(mask) = mask {
                ours.switch.set(BridgeSetting::GroupFwdMask(mask));
            }
        }
    }
}

fn compare() {
    let rounds: usize = std::env::var("XPV_ROUNDS").map_or(60, |rounds| rounds.parse().unwrap());
    let mut random = Random(bytes(0x0b, rounds * 256).into_iter());
    let (mut theirs, mut ours) = (Theirs::new(), Ours::new());
    let mut number = 0u32;
    let mut counts = [0; PORTS + 1];
    for round in 0..rounds {
        (0..2).for_each(|_| change(&mut random, &mut ours));
        let mut frames = Vec::new();
        let mut expected = BTreeMap::new();
        for _ in 0..FRAMES {
            let (from, source) = (random.below(PORTS), station(random.below(STATIONS)));
            let to = match random.below(12) {
                0 => [0xff; 6],
                1 => [1, 0, 0x5e, 0, 0, 1],
                2 => [1, 0x80, 0xc2, 0, 0, [0, 2, 3, 14][random.below(4)]],
                _ => station(random.below(STATIONS + 1)),
            };
            if ours.is_comparable(from, source, to) {
                number += 1;
                let frame = [&to[..], &source, &[0x88, 0xb5], &number.to_be_bytes(), &[0; 42]].concat();
                let frame = Frame::from_slice(&frame);
                expected.insert(number, (ours.send(from, &frame), from, source, to));
                frames.push((from, frame));
            }
        }
        let came = theirs.send(&frames);
        for (number, (ports, from, source, to)) in expected {
            let found = came.get(&number).cloned().unwrap_or_default();
            let flags = ours.flags.map(|flags| flags.to_string());
            let (source, to) = (Mac::new(source), Mac::new(to));
            assert_eq!(found, ports, "round {round}: from {source} at {from} to {to}; ports are {flags:?}");
            counts[ports.len()] += 1;
        }
    }
    assert!(counts.iter().take(PORTS).all(|count| *count > 50), "to no port, to one, to two: {counts:?}");
}

#[test]
fn linuxs_bridge_sends_the_same_frames_to_the_same_ports() {
    in_namespaces("linuxs_bridge_sends_the_same_frames_to_the_same_ports", compare);
}
