//! The rules of `lock=ip` beside the kernel's: a table of nftables for bridges has them too (`common/lock.nft`), and gives the same
//! verdicts on random and mutated frames. `XPV_FRAMES=1000000` compares more of them.

mod common;

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use bridge::fdb::{Limits, Mac, PortId};
use bridge::port::packet::Packet;
use bridge::switch::{Switch, Turn};
use bridge::{Batch, Caps, DropReason, Frame, Lock, Port, PortSettings};
use common::host::{in_namespaces, sh};
use common::{BOUND, send_all};
use testkit::random::bytes;

const OWN: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 1];
const OTHER: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 2];
const ALLOWED: &str = "10.0.0.5 10.8.0.0/16 2001:db8::5 2001:db8:1::/64";
/// Frames that are on their way at once.
const BURST: usize = 128;

/// The choices of which a frame is made.
struct Random {
    seed: u64,
    bytes: std::vec::IntoIter<u8>,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random { seed, bytes: Vec::new().into_iter() }
    }

    fn byte(&mut self) -> u8 {
        if self.bytes.len() == 0 {
            self.bytes = bytes(self.seed, 1 << 16).into_iter();
            self.seed += 1;
        }
        self.bytes.next().unwrap()
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Whether something happens that happens once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn mac(&mut self) -> [u8; 6] {
        self.of(&[OWN, OWN, OWN, OTHER])
    }

    fn v4(&mut self) -> [u8; 4] {
        let texts =
            ["10.0.0.5", "10.0.0.5", "10.8.3.4", "10.0.0.6", "0.0.0.0", "255.255.255.255", "224.0.0.22"];
        self.of(&texts).parse::<Ipv4Addr>().unwrap().octets()
    }

    fn v6(&mut self) -> [u8; 16] {
        let texts = [
            "fe80::216:3eff:fe00:1",
            "2001:db8::5",
            "2001:db8:1::7",
            "2001:db8::6",
            "fe80::216:3eff:fe00:2",
            "::",
            "::1",
            "ff02::1",
        ];
        self.of(&texts).parse::<Ipv6Addr>().unwrap().octets()
    }

    /// The number `index` is the frame's destination.
    fn frame(&mut self, index: u32) -> Vec<u8> {
        let (kind, packet) = match self.below(8) {
            0 | 1 => (0x0806u16, self.arp()),
            2..=4 => (0x0800, self.ipv4()),
            5..=7 => (0x86dd, self.ipv6()),
            _ => unreachable!(),
        };
        let kind = if self.once_in(20) { self.of(&[0x8035, 0x888e, 46, 0x0800, 0x86dd]) } else { kind };
        let mut tags = Vec::new();
        for _ in 0..self.of(&[0, 0, 0, 0, 0, 1, 1, 2]) {
            tags.extend(self.of(&[[0x81, 0, 0, 5], [0x88, 0xa8, 0, 6], [0x81, 0, 0, 0]]));
        }
        let mut rest = [&tags[..], &kind.to_be_bytes(), &packet].concat();
        if self.once_in(2) {
            for _ in 0..1 + self.below(2) {
                let at = self.below(rest.len());
                rest[at] = self.of(&[0, 1, 6, 17, 58, 134, 255]);
            }
        }
        if self.once_in(12) {
            rest.truncate(2 + self.below(rest.len() - 1));
        }
        [&destination(index)[..], &self.mac(), &rest].concat()
    }

    fn arp(&mut self) -> Vec<u8> {
        let op = self.of(&[1u8, 1, 2, 3]);
        let (sha, spa, tpa) = (self.mac(), self.v4(), self.v4());
        [&[0, 1, 8, 0, 6, 4, 0, op][..], &sha, &spa, &[0; 6], &tpa].concat()
    }

    fn udp(&mut self) -> Vec<u8> {
        let mut port = || self.of(&[67u16, 68, 546, 547, 53]).to_be_bytes();
        [port(), port(), [0, 12], [0; 2], [0; 2], [0; 2]].concat()
    }

    fn ipv4(&mut self) -> Vec<u8> {
        let (protocol, payload) = match self.below(4) {
            0 => (6, vec![0; 20]),
            1 => (2, [&[self.of(&[0x11u8, 0x12, 0x16, 0x22, 0x17])][..], &[0; 7]].concat()),
            _ => (17, self.udp()),
        };
        let [f0, f1] = self.of(&[0u16, 0, 0, 0, 0x4000, 0x2000, 0x2001, 0x00b9]).to_be_bytes();
        let options = vec![1; self.of(&[0, 0, 0, 4, 40])];
        let (from, to) = (self.v4(), self.v4());
        let [l0, l1] = ((20 + options.len() + payload.len()) as u16).to_be_bytes();
        let first = 0x45 + options.len() as u8 / 4;
        let start = [first, 0, l0, l1, 0, 0, f0, f1, 64, protocol, 0, 0];
        [&start[..], &from, &to, &options, &payload].concat()
    }

    fn icmpv6(&mut self) -> Vec<u8> {
        let kind = self.of(&[128u8, 131, 143, 133, 134, 135, 135, 136, 136, 137]);
        let option = [&[self.of(&[1u8, 2, 14]), 1][..], &self.mac()].concat();
        let option = if self.once_in(3) { Vec::new() } else { option };
        let target = if kind == 133 { Vec::new() } else { self.v6().to_vec() };
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, &option].concat()
    }

    fn ipv6(&mut self) -> Vec<u8> {
        let (mut next, mut payload) = match self.below(5) {
            0 => (6, vec![0; 20]),
            1 => (17, self.udp()),
            _ => (58, self.icmpv6()),
        };
        for _ in 0..self.of(&[0, 0, 0, 1, 1, 2]) {
            // nft looks at nothing behind an authentication header.
            let kind = self.of(&[0u8, 43, 60, 44]);
            let header = match kind {
                44 => {
                    let [a, b] = self.of(&[0u16, 1, 8, 0xb9]).to_be_bytes();
                    vec![next, 0, a, b, 0, 0, 0, 9]
                }
                _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
            };
            payload = [header, payload].concat();
            next = kind;
        }
        let [l0, l1] = (payload.len() as u16).to_be_bytes();
        let (from, to) = (self.v6(), self.v6());
        [&[0x60, 0, 0, 0, l0, l1, next, 255][..], &from, &to, &payload].concat()
    }
}

fn destination(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [2, 0x77, a, b, c, d]
}

/// Our verdict.
fn ours(switch: &mut Switch, frame: &Frame) -> Result<(), DropReason> {
    let summary = switch.forward(PortId(0), std::slice::from_ref(frame), Turn::at(Duration::ZERO));
    summary.drops().find(|(_, count)| *count > 0).map_or(Ok(()), |(reason, _)| Err(reason))
}

/// Whether the packet is shorter than what carries it: of the rest receivers know nothing, but nft reads it.
fn is_padded(bytes: &[u8]) -> bool {
    let is_tagged = matches!(bytes[12..14], [0x81, 0] | [0x88, 0xa8]);
    let start = if is_tagged { 18 } else { 14 };
    let Some(kind) = bytes.get(start - 2..start) else { return false };
    let packet = &bytes[start..];
    let field = |at: usize| packet.get(at..at + 2).map(|f| usize::from(u16::from_be_bytes([f[0], f[1]])));
    match kind {
        [8, 0] => field(2).is_some_and(|len| len < packet.len()),
        [0x86, 0xdd] => field(4).is_some_and(|len| 40 + len < packet.len()),
        _ => false,
    }
}

/// Sends frames into the kernel's bridge, and returns which came out of it.
fn theirs(sender: &mut Packet, receiver: &mut Packet, frames: &[Frame], last: u32) -> HashSet<[u8; 6]> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OWN, &[10, 0, 0, 5], &[0; 6], &[10, 0, 0, 5]].concat();
    let passes = Frame::from_slice(&[&destination(last)[..], &OWN, &[8, 6], &arp].concat());
    send_all(sender, &[frames, &[passes]].concat());
    let mut passed = HashSet::new();
    let mut batch = Batch::new(64);
    let start = Instant::now();
    while !passed.contains(&destination(last)) {
        assert!(start.elapsed() < BOUND, "the last frame does not come out");
        receiver.recv(&mut batch).unwrap();
        passed.extend(batch.frames().iter().map(|frame| *frame.head().first_chunk::<6>().unwrap()));
        batch.clear();
    }
    passed
}

fn compare() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/lock.nft");
    sh(&format!(
        "ip link add br0 type bridge
        for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -w $file ] || echo 0 > $file; done
        ip link add v0 type veth peer name p0
        ip link add v1 type veth peer name p1
        for name in br0 v0 p0 v1 p1; do echo 1 > /proc/sys/net/ipv6/conf/$name/disable_ipv6; done
        ip link set p0 master br0
        ip link set p1 master br0
        for name in br0 v0 p0 v1 p1; do ip link set $name up; done
        nft -f {rules}"
    ));
    let mut sender = Packet::open("v0").unwrap();
    let mut receiver = Packet::open("v1").unwrap();
    let mut switch = Switch::new(Limits::default(), 1);
    let allowed = ALLOWED.parse().unwrap();
    let settings =
        PortSettings { address: Some(Mac::new(OWN)), lock: Lock::Ip, allowed, ..PortSettings::default() };
    switch.attach(PortId(0), Caps::plain(1500), &settings, Duration::ZERO);
    switch.attach(PortId(1), Caps::plain(1500), &PortSettings::default(), Duration::ZERO);
    let count: usize = std::env::var("XPV_FRAMES").map_or(20_000, |count| count.parse().unwrap());
    let mut random = Random::new(0x10c);
    let [mut passed, mut dropped, mut unread] = [0; 3];
    for start in (0..count).step_by(BURST) {
        let frames: Vec<_> = (start..start + BURST).map(|index| random.frame(index as u32)).collect();
        let frames: Vec<_> = frames.iter().map(|bytes| Frame::from_slice(bytes)).collect();
        let seen = theirs(&mut sender, &mut receiver, &frames, u32::MAX - start as u32);
        for frame in &frames {
            let verdict = ours(&mut switch, frame);
            // Of what contradicts itself the kernel's rules see nothing.
            if verdict == Err(DropReason::LockHeaders) || is_padded(frame.head()) {
                unread += 1;
                continue;
            }
            let is_seen = seen.contains(&frame.head()[..6]);
            assert_eq!(verdict.is_ok(), is_seen, "{verdict:?} {is_seen}: {:02x?}", frame.head());
            if is_seen { passed += 1 } else { dropped += 1 }
        }
    }
    assert!(passed > count / 20 && dropped > count / 4 && unread < count / 3, "{passed} {dropped} {unread}");
}

#[test]
fn nftables_has_the_same_verdicts() {
    in_namespaces("nftables_has_the_same_verdicts", compare);
}
