//! Frames of taps and packet sockets are read into memory that the port at the other end of a wire lends.
#![allow(unsafe_code)] // lent memory is written behind a frame's back

mod common;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bridge::{
    Batch, Bridge, Buffer, Caps, CaptureOptions, CapturedFrames, Config, Frame, Frames, Interest, Iovecs,
    MAX_FRAGMENTS, Pin, PinTable, Pool, Port, Stats, iovec,
    port::{LENT, netdev, packet::Packet, tap::Tap},
};
use common::{
    host::{Host, in_namespaces, sh},
    until,
};
use nix::sys::eventfd::EventFd;
use testkit::random::bytes;

const PIECE: usize = 4096;
/// What whoever is behind a [`Lender`] writes to memory that it was given with a frame in it.
const THEIRS: u8 = 0xee;

/// A frame that was sent to a [`Lender`].
struct Sent {
    bytes: Vec<u8>,
    /// Pieces of lent memory that it was in.
    pieces: Option<usize>,
}

/// A port that lends memory in pieces of a page, and keeps copies of what it is sent.
struct Lender {
    pool: Arc<Pool>,
    /// Lent next, the first first.
    free: Vec<Buffer>,
    frames: PinTable<Vec<Buffer>>,
    sent: Arc<Mutex<Vec<Sent>>>,
    /// It takes frames.
    is_open: Arc<AtomicBool>,
    stats: Arc<Stats>,
    event: Arc<EventFd>,
}

impl Lender {
    fn new(sent: Arc<Mutex<Vec<Sent>>>) -> Lender {
        Lender {
            pool: Pool::new(512, PIECE).unwrap(),
            free: Vec::new(),
            frames: PinTable::new(64).unwrap(),
            sent,
            is_open: Arc::new(AtomicBool::new(true)),
            stats: Arc::default(),
            event: Arc::new(EventFd::new().unwrap()),
        }
    }
}

impl Port for Lender {
    fn caps(&self) -> Caps {
        Caps::full(65_521)
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }

    fn lend(&mut self, head_len: usize, into: &mut Iovecs) -> bool {
        while self.frames.reap().is_some() {}
        let pieces = (LENT + head_len).div_ceil(PIECE);
        while self.free.len() < pieces {
            let Some(buffer) = self.pool.take() else { return true };
            self.free.push(buffer);
        }
        for (n, buffer) in self.free.iter().enumerate() {
            let start = if n == 0 { head_len } else { 0 };
            into.push(iovec(buffer.as_mut_ptr().wrapping_add(start), PIECE - start));
        }
        true
    }

    fn keep_lent(&mut self, pieces: usize) -> Option<Pin> {
        let kept = self.free.drain(..pieces).collect();
        self.frames.insert(kept).ok().map(|(pin, _)| pin)
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        if !self.is_open.load(SeqCst) {
            return Ok(0);
        }
        for frame in frames.iter() {
            let bytes = frame.to_vec();
            let lent = frame.held_by().and_then(|pin| self.frames.get_mut(pin));
            let pieces = lent.map(|lent| {
                for buffer in lent.iter() {
                    // SAFETY: a buffer has so many bytes, of which there is no reference.
                    unsafe { buffer.as_mut_ptr().write_bytes(THEIRS, PIECE) };
                }
                lent.len()
            });
            self.sent.lock().unwrap().push(Sent { bytes, pieces });
        }
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn arm(&mut self, _: Interest) -> io::Result<bool> {
        Ok(false)
    }

    fn take_events(&mut self) -> io::Result<()> {
        self.event.read().map(drop).map_err(io::Error::from)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Sends frames by interface `near` of a host whose `far` end is the wire's, and checks how they arrive, with a VLAN's tag or
/// without one.
fn frames_arrive_lent(host: &Host, far: Box<dyn Port>, config: Config, is_lent: bool) {
    let bridge = Bridge::start(config).unwrap();
    let sent = Arc::new(Mutex::new(Vec::new()));
    bridge.attach("far", far).unwrap();
    bridge.attach("lender", Box::new(Lender::new(sent.clone()))).unwrap();
    link_is_up(host);
    for (seed, len) in [60, 124, 125, 1514, 4096, 4097, 9014, 65_000].into_iter().cycle().take(80).enumerate()
    {
        for tag in [&[][..], &[0x81, 0x00, 0x20, 0x05]] {
            let addresses = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
            let head = [&addresses[..], tag, &[0x88, 0xb5]].concat();
            let frame = [&head[..], &bytes(seed as u64, len - head.len())].concat();
            let wanted = frame.clone();
            host.run(move || {
                let mut near = Packet::open("near").expect("a packet socket");
                near.send(Frames::of(&[Frame::from_slice(&frame)])).expect("send");
            });
            let arrived = until(&format!("a frame of {len} bytes, tag {tag:?}"), || {
                let mut sent = sent.lock().unwrap();
                let at = sent.iter().position(|frame| frame.bytes[..12] == addresses)?;
                Some(sent.swap_remove(at))
            });
            assert!(arrived.bytes == wanted, "a frame of {len} bytes changed");
            match arrived.pieces {
                // The whole of it, with the tag that the kernel may have taken out.
                None => assert!(!is_lent || len <= 128, "{len} bytes"),
                Some(pieces) => assert!(is_lent && pieces <= len.div_ceil(PIECE) && pieces < MAX_FRAGMENTS),
            }
        }
    }
}

/// Waits for interface `near`: before that the kernel drops what is sent by it.
fn link_is_up(host: &Host) {
    until("the link is up", || {
        let shown = host.run(|| sh("ip link show near"));
        (shown.contains("LOWER_UP") && !shown.contains("state DOWN")).then_some(())
    });
}

/// A host with a veth pair, `near` and `far`.
fn veth() -> (Host, Packet) {
    let host = Host::new();
    let packet = host.run(|| {
        sh("ip link add near mtu 65521 type veth peer name far mtu 65521
            ip link set near up; ip link set far up");
        Packet::open("far").expect("a packet socket")
    });
    (host, packet)
}

#[test]
fn frames_of_a_packet_socket_on_a_wire_are_read_into_lent_memory() {
    in_namespaces("frames_of_a_packet_socket_on_a_wire_are_read_into_lent_memory", || {
        let (host, packet) = veth();
        frames_arrive_lent(&host, Box::new(packet), Config::wire("wire"), true);
    });
}

#[test]
fn frames_of_a_tap_on_a_wire_are_read_into_lent_memory() {
    in_namespaces("frames_of_a_tap_on_a_wire_are_read_into_lent_memory", || {
        let host = Host::new();
        let tap = host.run(|| {
            let mut tap = Tap::open("near").expect("a tap");
            tap.set_mtu(65_521).expect("an mtu");
            netdev::set_up(tap.name()).expect("set up");
            tap
        });
        frames_arrive_lent(&host, Box::new(tap), Config::wire("wire"), true);
    });
}

#[test]
fn capture_has_the_bytes_of_frames_whose_memory_was_given_away() {
    in_namespaces("capture_has_the_bytes_of_frames_whose_memory_was_given_away", || {
        let (host, far) = veth();
        let bridge = Bridge::start(Config::wire("wire")).unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let lender = Lender::new(sent.clone());
        let (is_open, event) = (lender.is_open.clone(), lender.event.clone());
        bridge.attach("lender", Box::new(lender)).unwrap();
        bridge.attach("far", Box::new(far)).unwrap();
        link_is_up(&host);
        let capture = bridge.capture("lender", CaptureOptions::default()).unwrap();
        // Frames that are taken at once, and frames that have waited.
        for waits in [false, true] {
            is_open.store(!waits, SeqCst);
            let head = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
            let frame = [&head[..], &bytes(u64::from(waits), 9_000)].concat();
            let wanted = frame.clone();
            host.run(move || {
                let mut near = Packet::open("near").expect("a packet socket");
                near.send(Frames::of(&[Frame::from_slice(&frame)])).expect("send");
            });
            if waits {
                until("the frame is read", || {
                    let ports = bridge.ports().unwrap();
                    let far = ports.iter().find(|port| port.name == "far").unwrap();
                    (far.counters.rx_bytes >= 2 * wanted.len() as u64).then_some(())
                });
                is_open.store(true, SeqCst);
                event.write(1).unwrap();
            }
            let mut captured = CapturedFrames::default();
            let found = until("the frame is captured", || {
                capture.take(&mut captured, Duration::ZERO);
                let mut bytes = captured.iter().map(|(_, bytes)| bytes);
                bytes.find(|bytes| bytes.starts_with(&head)).map(<[u8]>::to_vec)
            });
            let was_lent =
                sent.lock().unwrap().drain(..).any(|frame| frame.bytes == wanted && frame.pieces.is_some());
            assert!(was_lent, "waits: {waits}");
            assert!(found == wanted, "waits: {waits}");
        }
    });
}

/// What a learning bridge does not forward nobody may see, and which port may see the rest is known after the read.
#[test]
fn learning_bridge_borrows_no_memory() {
    in_namespaces("learning_bridge_borrows_no_memory", || {
        let (host, packet) = veth();
        frames_arrive_lent(&host, Box::new(packet), Config::default(), false);
    });
}

/// More frames than there is memory for in one round: the others stay in the kernel.
#[test]
fn frames_beyond_what_is_lent_are_read_once_there_is_more() {
    const FRAMES: usize = 60;
    in_namespaces("frames_beyond_what_is_lent_are_read_once_there_is_more", || {
        let (host, packet) = veth();
        let bridge = Bridge::start(Config::wire("wire")).unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let lender = Lender::new(sent.clone());
        let is_open = lender.is_open.clone();
        let event = lender.event.clone();
        is_open.store(false, SeqCst);
        bridge.attach("far", Box::new(packet)).unwrap();
        bridge.attach("lender", Box::new(lender)).unwrap();
        link_is_up(&host);
        let addresses = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        host.run(move || {
            let mut near = Packet::open("near").expect("a packet socket");
            for seed in 0..FRAMES {
                let frame = [&addresses[..], &[0x88, 0xb5], &bytes(seed as u64, 60_000)].concat();
                near.send(Frames::of(&[Frame::from_slice(&frame)])).expect("send");
            }
        });
        is_open.store(true, SeqCst);
        event.write(1).unwrap();
        let arrived = || {
            let mut sent = sent.lock().unwrap();
            sent.retain(|frame| frame.bytes[..12] == addresses);
            sent.len()
        };
        until("all frames", || (arrived() == FRAMES).then_some(()));
        let sent = sent.lock().unwrap();
        for (seed, frame) in sent.iter().enumerate() {
            assert!(frame.bytes[14..] == bytes(seed as u64, 60_000), "frame {seed} changed");
            assert!(frame.pieces.is_some(), "frame {seed} of {FRAMES} was read into another buffer");
        }
    });
}
