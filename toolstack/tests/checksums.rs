//! TCP checksums between two guests. If both kernels offload them, no checksum is computed on the path; if the sender does
//! not, its own arrive. In both cases the received segments are correct.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bridge::port::packet::Packet;
use bridge::{Batch, Interest, Port};
use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{BOUND, Machine};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testkit::random::bytes;

const BYTES: usize = 16 << 20;
/// Bytes of an Ethernet header, and of the IPv4 header that Linux gives TCP.
const ETHERNET: usize = 14;
const IPV4: usize = 20;

#[test]
fn checksums_with_and_without_offload_are_correct() {
    let machine = Machine::new();
    let [alice, bob] = two_guests(&machine);
    let seen = transfer(&alice, &bob, "10.77.0.2");
    println!("offloads on: {seen:?}");
    assert!(seen.blank > 0 && seen.unsegmented > 0 && seen.wrong == 0, "{seen:?}");
    run(alice.program("ethtool", "ethtool").args(["-K", "eth0", "tx", "off"]));
    let seen = transfer(&alice, &bob, "10.77.0.2");
    println!("sender's offloads off: {seen:?}");
    assert!(seen.complete > 0 && seen.blank == 0 && seen.unsegmented == 0 && seen.wrong == 0, "{seen:?}");
    let seen = transfer(&bob, &alice, "10.77.0.1");
    println!("receiver's offloads off: {seen:?}");
    assert!(seen.blank > 0 && seen.wrong == 0, "{seen:?}");
    for namespace in [&alice, &bob] {
        assert_eq!(namespace.tcp("InCsumErrors"), 0);
    }
}

/// Counts of the TCP frames with data that arrived at an interface; the watcher may miss some.
#[derive(Debug, Default)]
struct Seen {
    /// The checksum is blank: its field holds the pseudo-header's sum.
    blank: u64,
    /// Blank, and the frame is longer than a segment.
    unsegmented: u64,
    /// The checksum is computed and correct.
    complete: u64,
    /// The checksum is neither blank nor correct.
    wrong: u64,
}

/// Sends bytes by TCP from one guest to another, which checks them; returns counts of the frames that arrived.
fn transfer(from: &Namespace, to: &Namespace, address: &'static str) -> Seen {
    let stop = Arc::new(AtomicBool::new(false));
    let watcher_stop = stop.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let watcher = to.spawn(move || {
        let port = Packet::open("eth0").unwrap();
        let listener = TcpListener::bind((address, 5000)).unwrap();
        ready.send(listener).unwrap();
        watch(port, &watcher_stop)
    });
    let listener = is_ready.recv_timeout(BOUND).unwrap();
    let receiver = to.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received == bytes(1, BYTES)
    });
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect((address, 5000)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        stream.write_all(&bytes(1, BYTES)).unwrap();
    });
    sender.join().unwrap();
    assert!(receiver.join().unwrap(), "the bytes differ");
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap()
}

/// Counts the frames that arrive until `stop` is set.
fn watch(mut port: Packet, stop: &AtomicBool) -> Seen {
    let mut batch = Batch::new(64);
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        port.recv(&mut batch).unwrap();
        batch.frames().iter().for_each(|frame| seen.count(frame));
        if batch.frames().iter().count() == 0 && !port.arm(Interest::INPUT).unwrap() {
            poll(&mut [PollFd::new(port.fd().as_fd(), PollFlags::POLLIN)], PollTimeout::from(50u8)).unwrap();
        }
        batch.clear();
    }
    seen
}

impl Seen {
    fn count(&mut self, frame: &bridge::Frame) {
        let bytes = frame.to_vec();
        let is_tcp = bytes.len() > ETHERNET + IPV4 + 20 && bytes[12..15] == [8, 0, 0x45] && bytes[23] == 6;
        if !is_tcp {
            return;
        }
        let ip = &bytes[ETHERNET..];
        let tcp = &ip[IPV4..usize::from(u16::from_be_bytes([ip[2], ip[3]]))];
        let header = usize::from(tcp[12] >> 4) * 4;
        if tcp.len() == header {
            return;
        }
        let pseudo = sum(&ip[12..20]) + 6 + tcp.len() as u64;
        let offload = frame.offload();
        match offload.csum {
            Some(at)
                if usize::from(at.start) == ETHERNET + IPV4 && fold(pseudo) == fold(sum(&tcp[16..18])) =>
            {
                self.blank += 1;
                self.unsegmented += u64::from(offload.gso.is_some());
            }
            None if fold(pseudo + sum(tcp)) == 0xffff => self.complete += 1,
            _ => self.wrong += 1,
        }
    }
}

/// Sums big-endian words, the last one filled with zero (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
