//! Bursts of UDP datagrams through every pair of a tap, a packet socket and a pair: none is lost, none waits for the tick.

mod common;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use bridge::{
    Bridge, Caps, Config, Frame, QueueLimits,
    port::{netdev, packet::Packet, pair::Pair, tap::Tap},
};
use common::{
    BOUND,
    host::{Host, in_namespaces, sh},
    send, take,
};
use etherparse::PacketBuilder;

const PORT: u16 = 7777;
/// Sockets that receive a burst in turns: what one holds without special rights is less than a burst.
const SOCKETS: u16 = 50;
/// Datagrams of each burst, and bytes of each datagram.
const BURSTS: [(u16, usize); 5] = [(10, 64), (300, 1000), (2000, 64), (2000, 1400), (40, 65_000)];
/// Most frames of a burst into a packet socket, whose buffer is small without special rights.
const PACKET_FRAMES: usize = 150;
/// How long the last datagram of a burst may take. On an idle machine it takes less than 20 ms.
const LATE: Duration = Duration::from_millis(600);

/// A station behind a port of the bridge.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tap,
    Packet,
}

impl Kind {
    /// The number of datagrams of a burst of `count` that may come through such a port.
    fn limit(self, count: u16, size: usize) -> u16 {
        let most = PACKET_FRAMES / size.div_ceil(1480);
        if self == Kind::Packet { count.min(most as u16) } else { count }
    }
}

/// A host `10.0.0.n` behind a port of the bridge, whose name is its address.
fn host(bridge: &Bridge, kind: Kind, n: u8) -> Host {
    let host = Host::new();
    let name = format!("10.0.0.{n}");
    match kind {
        Kind::Tap => {
            let tap = host.run(|| {
                let tap = Tap::open("near").expect("a tap");
                netdev::set_up("near").expect("set up");
                tap
            });
            bridge.attach(&name, Box::new(tap)).unwrap();
        }
        Kind::Packet => {
            let packet = host.run(|| {
                sh("ip link add near type veth peer name far; ip link set near up; ip link set far up");
                Packet::open("far").expect("a packet socket")
            });
            bridge.attach(&name, Box::new(packet)).unwrap();
        }
    }
    host.run(move || sh(&format!("ip address add {name}/24 dev near")));
    host
}

/// Sockets that receive datagrams on the host `10.0.0.n`.
fn sockets(host: &Host, n: u8) -> Vec<UdpSocket> {
    host.run(move || {
        let socket = |port| UdpSocket::bind((format!("10.0.0.{n}"), port)).expect("a socket");
        let sockets: Vec<_> = (PORT..PORT + SOCKETS).map(socket).collect();
        sockets.iter().for_each(|socket| socket.set_read_timeout(Some(BOUND)).expect("time-out"));
        sockets
    })
}

/// Receives `count` numbered datagrams, and returns when the last came.
fn receive(sockets: &[UdpSocket], count: u16, what: &str) -> Instant {
    let mut into = vec![0; 65_536];
    for number in 0..count {
        let socket = &sockets[usize::from(number % SOCKETS)];
        let len = socket.recv(&mut into).unwrap_or_else(|e| panic!("{what}: {number} is lost: {e}"));
        assert!(len >= 2);
        assert_eq!(u16::from_be_bytes([into[0], into[1]]), number, "{what}: the next of its socket");
    }
    Instant::now()
}

/// Sends `count` numbered datagrams of `size` bytes to `10.0.0.to`, and returns when the last was sent.
fn send_from(host: &Host, to: u8, count: u16, size: usize) -> Instant {
    host.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let mut bytes = vec![7; size];
        for number in 0..count {
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            socket.send_to(&bytes, (format!("10.0.0.{to}"), PORT + number % SOCKETS)).expect("sent");
        }
        Instant::now()
    })
}

fn assert_in_time(bridge: &Bridge, sent: Instant, received: Instant, what: &str) {
    let late = received.saturating_duration_since(sent);
    println!("{what}: the last came {late:?} after it was sent");
    let ports = bridge.ports().unwrap();
    assert!(late < LATE, "{what}: {late:?}: {ports:?}");
    assert!(ports.iter().all(|port| port.counters.missed_wakeups == 0), "{what}: {ports:?}");
}

#[test]
fn bursts_between_kernel_interfaces_lose_nothing() {
    in_namespaces("bursts_between_kernel_interfaces_lose_nothing", || {
        for (from, to) in [
            (Kind::Tap, Kind::Tap),
            (Kind::Tap, Kind::Packet),
            (Kind::Packet, Kind::Tap),
            (Kind::Packet, Kind::Packet),
        ] {
            let bridge = Bridge::start(Config::default()).unwrap();
            let a = host(&bridge, from, 1);
            let b = host(&bridge, to, 2);
            a.run(|| sh("ping -n -c 1 -W 10 10.0.0.2"));
            let sockets = sockets(&b, 2);
            for (count, size) in BURSTS {
                let count = from.limit(count, size);
                let what = format!("{from:?} to {to:?}, {count} datagrams of {size} bytes");
                let sent = send_from(&a, 2, count, size);
                let received = receive(&sockets, count, &what);
                assert_in_time(&bridge, sent, received, &what);
            }
        }
    });
}

/// A bridge in which a whole burst may wait: nobody reads from a pair while the burst is sent, which on a busy machine takes longer
/// than a sender is held.
fn holding_a_burst() -> Config {
    let queue = QueueLimits { frames: 4096, bytes: 8 << 20, ..QueueLimits::default() };
    Config { queue, ..Config::default() }
}

/// The address of the station behind a pair.
const PAIR: [u8; 6] = [2, 0, 0, 0, 0, 9];

#[test]
fn bursts_between_kernel_interfaces_and_a_pair_lose_nothing() {
    in_namespaces("bursts_between_kernel_interfaces_and_a_pair_lose_nothing", || {
        for kind in [Kind::Tap, Kind::Packet] {
            let bridge = Bridge::start(holding_a_burst()).unwrap();
            let a = host(&bridge, kind, 1);
            // A pair keeps the buffers of the frames in its queue: fewer than a tap has.
            let (mut end, port) = Pair::new(Caps::plain(1500), 128).unwrap();
            bridge.attach("pair", Box::new(port)).unwrap();
            a.run(|| sh("ip neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev near"));
            let mac = parse_mac(&a.run(|| sh("ip -br link show near")));
            // The bridge learns the pair's address.
            send(&mut end, &[Frame::from_slice(&[&mac[..], &PAIR, &[0x88, 0xb5], &[0; 46]].concat())]);
            let sockets = sockets(&a, 1);
            for (count, size) in BURSTS.into_iter().filter(|(_, size)| *size <= 1400) {
                let received = kind.limit(count, size);
                let what = format!("{kind:?} to a pair, {received} datagrams of {size} bytes");
                let sent = send_from(&a, 9, received, size);
                take_datagrams(&mut end, received);
                assert_in_time(&bridge, sent, Instant::now(), &what);
                let what = format!("a pair to {kind:?}, {count} datagrams of {size} bytes");
                send(&mut end, &(0..count).map(|number| datagram(mac, number, size)).collect::<Vec<_>>());
                let sent = Instant::now();
                let received = receive(&sockets, count, &what);
                assert_in_time(&bridge, sent, received, &what);
            }
        }
    });
}

/// Receives `count` numbered datagrams among other frames.
fn take_datagrams(end: &mut Pair, count: u16) {
    let mut seen = vec![false; usize::from(count)];
    let mut left = count;
    while left > 0 {
        for bytes in take(end, 1).iter().map(Frame::to_vec) {
            let is_ours = bytes.len() > 44
                && bytes[12..14] == [8, 0]
                && bytes[23] == 17
                && (PORT..PORT + SOCKETS).contains(&u16::from_be_bytes([bytes[36], bytes[37]]));
            if is_ours {
                let number = usize::from(u16::from_be_bytes([bytes[42], bytes[43]]));
                assert!(!std::mem::replace(&mut seen[number], true), "datagram {number} came twice");
                left -= 1;
            }
        }
    }
}

/// The address in a line of `ip -br link`.
fn parse_mac(line: &str) -> [u8; 6] {
    let text = line
        .split_ascii_whitespace()
        .find(|word| word.len() == 17 && word.contains(':'))
        .expect("an address");
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}

/// A datagram from the station behind the pair to the host 10.0.0.1.
fn datagram(to: [u8; 6], number: u16, size: usize) -> Frame {
    let mut payload = vec![7; size];
    payload[..2].copy_from_slice(&number.to_be_bytes());
    let builder = PacketBuilder::ethernet2(PAIR, to)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
        .udp(1, PORT + number % SOCKETS);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &payload).expect("a datagram");
    Frame::from_slice(&bytes)
}
