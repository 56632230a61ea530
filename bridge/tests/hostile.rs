//! Attacks by a port on the others of its bridge: docs/attacks.md, section "Bridge".

mod common;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use bridge::{
    Addresses, Batch, Bridge, Caps, Config, DropReason, Flood, Frame, Frames, Gso, GsoKind, Interest, Lock,
    Offload, Port, PortSettings, Setting, Stats, StormLimits, fdb::Mac, partial_checksum::mark_blank,
    port::pair::Pair,
};
use common::{pair, send, take, until};
use etherparse::PacketBuilder;
use nix::sys::eventfd::EventFd;

const GUEST: [u8; 6] = mac(1);
const GATEWAY: [u8; 6] = mac(2);
const BROADCAST: [u8; 6] = [0xff; 6];

const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

fn frame(to: [u8; 6], from: [u8; 6], note: u8) -> Frame {
    Frame::from_slice(&[&to[..], &from, &[0x88, 0xb5, note], &[0; 45]].concat())
}

fn tcp(to: [u8; 6], from: [u8; 6], size: u16) -> Frame {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder.tcp(1, 2, 3, 4).write(&mut bytes, &[5; 65_000]).unwrap();
    let mut frame = Frame::from_slice(&bytes);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size });
    frame.set_offload(Offload { gso, ..Offload::NONE });
    mark_blank(&mut frame).unwrap();
    frame
}

fn guest(address: [u8; 6], lock: Lock) -> PortSettings {
    PortSettings { address: Some(Mac::new(address)), lock, ..PortSettings::default() }
}

fn attach(bridge: &Bridge, name: &str, caps: Caps, settings: PortSettings) -> Pair {
    let (end, port) = pair(caps);
    bridge.attach_with(name, Box::new(port), settings).unwrap();
    end
}

fn dropped(bridge: &Bridge, name: &str, reason: DropReason) -> u64 {
    let ports = bridge.ports().unwrap();
    ports.iter().find(|port| port.name == name).unwrap().counters.dropped(reason)
}

/// The frame is there before the port is.
#[test]
fn spoofed_frame_that_comes_first_is_dropped() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let mut victim = attach(&bridge, "victim", Caps::full(1500), PortSettings::default());
    let (mut hostile, port) = pair(Caps::full(1500));
    send(&mut hostile, &[frame(BROADCAST, GATEWAY, 1), frame(BROADCAST, GUEST, 2)]);
    bridge.attach_with("hostile", Box::new(port), guest(GUEST, Lock::Mac)).unwrap();
    assert_eq!(take(&mut victim, 1)[0].head()[14], 2);
    assert_eq!(dropped(&bridge, "hostile", DropReason::Lock), 1);
    let rows: Vec<_> =
        bridge.fdb().unwrap().into_iter().map(|row| (row.mac, row.kind == bridge::FdbKind::Own)).collect();
    assert_eq!(rows, [(Mac::new(GUEST), true)]);
    bridge.set("hostile", Setting::Lock(Lock::Off, Addresses::default())).unwrap();
    send(&mut hostile, &[frame(BROADCAST, GATEWAY, 3)]);
    assert_eq!(take(&mut victim, 1)[0].head()[14], 3);
}

#[test]
fn wire_has_a_lock_where_one_is_asked_for() {
    for (lock, first) in [(Lock::Off, 1), (Lock::Mac, 2)] {
        let wire = Bridge::start(Config::wire("wire")).unwrap();
        let mut tap = attach(&wire, "tap", Caps::full(1500), PortSettings::default());
        let mut vif = attach(&wire, "vif", Caps::full(1500), guest(GUEST, lock));
        send(&mut vif, &[frame(GATEWAY, GATEWAY, 1), frame(GATEWAY, GUEST, 2)]);
        assert_eq!(take(&mut tap, 1)[0].head()[14], first);
    }
}

/// A guest that bridges may send from any address but those of other guests.
#[test]
fn address_of_another_guest_is_neither_learned_nor_forwarded() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let mut gateway = attach(&bridge, "gateway", Caps::full(1500), guest(GATEWAY, Lock::Mac));
    let mut hostile = attach(&bridge, "hostile", Caps::full(1500), guest(GUEST, Lock::Off));
    let mut victim = attach(&bridge, "victim", Caps::full(1500), PortSettings::default());
    send(&mut hostile, &[frame(BROADCAST, GATEWAY, 1), frame(BROADCAST, mac(7), 2)]);
    assert_eq!(take(&mut victim, 1)[0].head()[14], 2);
    assert_eq!(take(&mut gateway, 1)[0].head()[14], 2);
    send(&mut victim, &[frame(GATEWAY, mac(3), 4)]);
    assert_eq!(take(&mut gateway, 1)[0].head()[14], 4);
    assert_eq!(dropped(&bridge, "hostile", DropReason::Sticky), 1);
    // What moves is counted where it moves to.
    send(&mut victim, &[frame(BROADCAST, mac(7), 5)]);
    assert_eq!(take(&mut gateway, 1)[0].head()[14], 5);
    let moves: Vec<_> = bridge.ports().unwrap().iter().map(|port| port.counters.mac_moves).collect();
    assert_eq!(moves, [0, 0, 1]);
}

#[test]
fn storms_end_at_the_ports_limit_and_its_other_frames_pass() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let mut victim = attach(&bridge, "victim", Caps::full(1500), guest(GATEWAY, Lock::Mac));
    // Nothing accrues while the test runs: no limit is reached twice.
    let mut storm = StormLimits::default();
    Flood::ALL.into_iter().for_each(|flood| storm.set(flood, Some(0)));
    let mut hostile =
        attach(&bridge, "hostile", Caps::full(1500), PortSettings { storm, ..guest(GUEST, Lock::Mac) });
    let kinds = [BROADCAST, [1, 0, 0x5e, 0, 0, 1], mac(9)];
    let storm: Vec<_> = kinds.iter().flat_map(|to| vec![frame(*to, GUEST, 1); 100]).collect();
    send(&mut hostile, &storm);
    send(&mut hostile, &[frame(GATEWAY, GUEST, 2)]);
    assert_eq!(take(&mut victim, 1)[0].head()[14], 2);
    for reason in [DropReason::Broadcast, DropReason::Multicast, DropReason::UnknownUnicast] {
        assert_eq!(dropped(&bridge, "hostile", reason), 100, "{reason:?}");
    }
    // A limit that is lifted holds no longer.
    bridge.set("hostile", Setting::Storm(StormLimits::default())).unwrap();
    send(&mut hostile, &[frame(BROADCAST, GUEST, 3)]);
    assert_eq!(take(&mut victim, 1)[0].head()[14], 3);
}

#[test]
fn frame_of_tiny_segments_is_dropped_where_it_comes_from() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let mut plain = attach(&bridge, "plain", Caps::plain(1500), PortSettings::default());
    let mut hostile = attach(&bridge, "hostile", Caps::full(1500), PortSettings::default());
    send(&mut hostile, &[tcp(BROADCAST, GUEST, 48), frame(BROADCAST, GUEST, 2)]);
    assert_eq!(take(&mut plain, 1)[0].head()[14], 2);
    assert_eq!(dropped(&bridge, "hostile", DropReason::SmallSegments), 1);
}

/// Has the same frame as often as it is asked, while the test says so.
struct Source {
    frame: Frame,
    is_on: Arc<AtomicBool>,
    burst: usize,
    stats: Arc<Stats>,
    event: EventFd,
}

impl Source {
    fn new(frame: Frame, burst: usize, is_on: &Arc<AtomicBool>) -> Box<Source> {
        let event = EventFd::new().unwrap();
        // Readable for ever: the port is never asleep.
        event.write(1).unwrap();
        Box::new(Source { frame, burst, is_on: is_on.clone(), stats: Arc::default(), event })
    }
}

impl Port for Source {
    fn caps(&self) -> Caps {
        Caps::full(1500)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        let count = if self.is_on.load(SeqCst) { self.burst } else { 0 };
        for _ in 0..count {
            if let Some(slot) = into.slot() {
                slot.copy_from(&self.frame);
            }
        }
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(true)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Takes everything, and counts what the hostile guest had sent between two frames of the other.
struct Sink {
    stats: Arc<Stats>,
    event: EventFd,
    since: usize,
    honest: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Port for Sink {
    fn caps(&self) -> Caps {
        Caps::plain(1500)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        for frame in frames.iter() {
            if frame.head()[6..12] == GUEST {
                self.since += 1;
            } else {
                self.most.fetch_max(std::mem::take(&mut self.since), SeqCst);
                self.honest.fetch_add(1, SeqCst);
            }
        }
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Starts a bridge whose guest sends batches of that frame, while another sends single ones, and gives the most frames of the
/// guest between two of the other's at a port without offloads.
fn most_between_two_honest_frames(hostile: Frame) -> usize {
    let bridge = Bridge::start(Config::default()).unwrap();
    let is_on = Arc::new(AtomicBool::new(false));
    let honest = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let sink = Sink {
        stats: Arc::default(),
        event: EventFd::new().unwrap(),
        since: 0,
        honest: honest.clone(),
        most: most.clone(),
    };
    bridge.attach_with("sink", Box::new(sink), guest(GATEWAY, Lock::Off)).unwrap();
    bridge.attach("hostile", Source::new(hostile, 64, &is_on)).unwrap();
    bridge.attach("honest", Source::new(frame(GATEWAY, mac(3), 0), 1, &is_on)).unwrap();
    is_on.store(true, SeqCst);
    until("honest frames", || (honest.load(SeqCst) > 20).then_some(()));
    most.load(SeqCst)
}

/// A turn costs its port's share: frames of a thousand segments wait for turns of their own.
#[test]
fn honest_frame_waits_for_few_of_a_flood_of_segments() {
    let most = most_between_two_honest_frames(tcp(GATEWAY, GUEST, 216));
    // A frame of 301 segments costs more than half of a turn.
    assert!(most <= 2 * 301, "{most}");
}

#[test]
fn honest_frame_waits_for_one_burst_of_a_flood_of_short_frames() {
    let most = most_between_two_honest_frames(frame(GATEWAY, GUEST, 0));
    assert!(most <= 64, "{most}");
}

/// Nothing of what a port may still send is lost while it waits for its turn, and the port can be removed meanwhile.
#[test]
fn frames_put_off_to_later_turns_all_arrive_in_order() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let mut plain = attach(&bridge, "plain", Caps::plain(1500), guest(GATEWAY, Lock::Off));
    let mut source = attach(&bridge, "source", Caps::full(1500), PortSettings::default());
    let mut frames = Vec::new();
    for note in 0..20 {
        frames.extend([tcp(GATEWAY, GUEST, 1000), frame(GATEWAY, GUEST, note)]);
    }
    send(&mut source, &frames);
    let got = take(&mut plain, 20 * 66);
    let notes: Vec<u8> = got.iter().filter(|frame| frame.len() == 60).map(|frame| frame.head()[14]).collect();
    assert_eq!(notes, (0..20).collect::<Vec<u8>>());
    send(&mut source, &frames);
    bridge.detach("source").unwrap();
}

/// Frames that a port may not send are the work of their sender, who finds his ring full.
#[test]
fn port_that_goes_on_sending_what_it_may_not_is_received_from_more_rarely() {
    let bridge = Bridge::start(Config::default()).unwrap();
    let is_on = Arc::new(AtomicBool::new(true));
    let started = Instant::now();
    let spoofed = Source::new(frame(BROADCAST, GATEWAY, 0), 64, &is_on);
    bridge.attach_with("hostile", spoofed, guest(GUEST, Lock::Mac)).unwrap();
    until("twenty bursts", || (dropped(&bridge, "hostile", DropReason::Lock) >= 20 * 64).then_some(()));
    let bursts = dropped(&bridge, "hostile", DropReason::Lock) / 64;
    let millis = started.elapsed().as_millis() as u64;
    // Holds of 1, 2, 4, 8 and from then on 16 ms; after a stall of 100 ms the short ones again.
    assert!(bursts <= millis / 8 + 6, "{bursts} bursts in {millis} ms");
}

#[test]
fn longest_turn_is_counted_while_a_flood_of_segments_lasts() {
    let bridge = Bridge::start(Config::default()).unwrap();
    assert!(bridge.longest_turn().is_zero());
    let _plain = attach(&bridge, "plain", Caps::plain(1500), guest(GATEWAY, Lock::Off));
    let is_on = Arc::new(AtomicBool::new(true));
    bridge.attach("hostile", Source::new(tcp(GATEWAY, GUEST, 216), 64, &is_on)).unwrap();
    let longest = until("turns", || Some(bridge.longest_turn()).filter(|longest| !longest.is_zero()));
    println!("the longest turn: {longest:?}");
}
