//! Bursts of UDP datagrams from one network namespace to another, through two vifs and the bridge: none is lost, and none waits
//! for a tick. More than any one queue holds are sent, so that each full one must push back to the one before it.

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::Machine;
use common::netns::{Namespace, two_guests};
use common::program::run;

/// How long the last datagram may take after it was sent. On an idle machine it takes less than 20 ms; here other tests may
/// use the processors. A tick is a second.
const LATE: Duration = Duration::from_millis(600);
/// Sockets that receive a burst in turns: what one holds without special rights is less than a burst.
const SOCKETS: u16 = 50;
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const PORT: u16 = 7777;

/// Sends `count` datagrams of `size` bytes at once, and returns how long after that the last arrived.
fn burst(from: &Namespace, to: (&Namespace, &'static str), count: u16, size: usize) -> Duration {
    let (to, address) = to;
    let sockets = to.spawn(move || sockets(address)).join().unwrap();
    let receiver = to.spawn(move || {
        let mut into = vec![0; 65_536];
        for number in 0..count {
            let socket = &sockets[usize::from(number % SOCKETS)];
            let len =
                socket.recv(&mut into).unwrap_or_else(|error| panic!("{number} of {count} is lost: {error}"));
            assert_eq!(len, size);
            assert_eq!(u16::from_be_bytes([into[0], into[1]]), number, "the next of its socket");
        }
        Instant::now()
    });
    let sender = from.spawn(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut bytes = vec![7; size];
        for number in 0..count {
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            socket.send_to(&bytes, (address, PORT + number % SOCKETS)).unwrap();
        }
        Instant::now()
    });
    let sent = sender.join().unwrap();
    let received = receiver.join().unwrap();
    received.saturating_duration_since(sent)
}

fn sockets(address: &str) -> Vec<UdpSocket> {
    let sockets: Vec<_> =
        (PORT..PORT + SOCKETS).map(|port| UdpSocket::bind((address, port)).unwrap()).collect();
    sockets.iter().for_each(|socket| socket.set_read_timeout(Some(common::BOUND)).unwrap());
    sockets
}

#[test]
fn bursts_between_namespaces_lose_nothing_and_wait_for_no_tick() {
    let machine = Machine::new();
    let guests = two_guests(&machine);
    for (guest, peer) in [(0, 1), (1, 0)] {
        run(guests[guest].program("ping", "iputils-ping").args(["-c", "1", "-W", "5", ADDRESSES[peer]]));
    }
    // At most the 2,000 frames that a tap queues: a datagram of 65,000 bytes is 44 of them.
    let bursts =
        [(10, 64), (300, 64), (2000, 64), (300, 1000), (600, 1000), (2000, 1000), (300, 8000), (40, 65_000)];
    for (from, to) in [(0, 1), (1, 0)] {
        for (count, size) in bursts {
            let late = burst(&guests[from], (&guests[to], ADDRESSES[to]), count, size);
            println!("{count} datagrams of {size} bytes: the last came {late:?} after it was sent");
            assert!(late < LATE, "{count} datagrams of {size} bytes: {late:?}\n{}", machine.log());
        }
    }
    assert_no_wakeup_was_missed(&machine);
}

/// In no process of the machine the tick found work that nobody had told of.
fn assert_no_wakeup_was_missed(machine: &Machine) {
    let log = machine.log();
    assert!(!log.contains("missed a wake-up"), "{log}");
}
