//! Bursts of frames from a guest to another, and to a program beside the bridge, none of which takes any until all were
//! sent: none is lost, and none waits for the tick.

use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Port};
use netfront::{Config, Nic};
use ring_abi::DomId;
use ring_abi::netif::key;
use std::time::Instant;
use testkit::net::{Network, frame, guest, receive, send};
use testkit::{BOUND, Machine};
use xenstore::Nodes;

/// Frames of each burst, and bytes of each frame: at most what the receiver's ring and its queue in the bridge hold.
const BURSTS: [(usize, usize); 5] = [(10, 64), (300, 1000), (2000, 64), (2000, 1000), (1300, 1514)];
/// The address of the program beside the bridge.
const PROGRAM: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn send_burst(nic: &mut Nic, to: [u8; 6], count: usize, len: usize) {
    let from = nic.mac();
    for number in 0..count {
        send(nic, &frame(to, from, len, (number % 251) as u8));
    }
    nic.flush();
}

fn assert_nothing_missed(network: &Network) {
    for port in network.bridge.ports().unwrap() {
        assert_eq!(port.counters.missed_wakeups, 0, "{port:?}");
        assert_eq!(port.counters.all_dropped(), 0, "{port:?}");
    }
}

#[test]
fn bursts_between_guests_arrive_whole_and_in_order() {
    Network::each(|machine, network| {
        let mut a = guest(machine, DomId(1), Config::default());
        let mut b = guest(machine, DomId(2), Config::default());
        let mut into = vec![0; 65_536];
        send_burst(&mut b, a.mac(), 1, 60);
        receive(&mut a, &mut into);
        for (count, len) in BURSTS {
            send_burst(&mut a, b.mac(), count, len);
            for number in 0..count {
                let (got, _) = receive(&mut b, &mut into);
                let expected = frame(b.mac(), a.mac(), len, (number % 251) as u8);
                assert!(into[..got] == expected, "frame {number} of {count}, {len} bytes");
            }
            b.flush();
        }
        assert_nothing_missed(network);
    });
}

#[test]
fn bursts_between_a_guest_and_a_program_arrive_whole_and_in_order() {
    Network::each(|machine, network| {
        let (inner, mut outer) = Pair::new(Caps::plain(1500), 64).unwrap();
        network.bridge.attach("program", Box::new(inner)).unwrap();
        let mut nic = guest(machine, DomId(1), Config::default());
        let mut batch = Batch::new(64);
        for (count, len) in BURSTS {
            send_burst(&mut nic, PROGRAM, count, len);
            let deadline = Instant::now() + BOUND;
            let mut number = 0;
            while number < count {
                assert!(Instant::now() < deadline, "{number} of {count} frames of {len} bytes");
                outer.recv(&mut batch).unwrap();
                for got in batch.frames() {
                    let expected = frame(PROGRAM, nic.mac(), len, (number % 251) as u8);
                    assert!(got.to_vec() == expected, "frame {number} of {count}, {len} bytes");
                    number += 1;
                }
                batch.clear();
            }
        }
        assert_nothing_missed(network);
    });
}

/// With an event channel for each ring only where both ends say so, frames pass both ways.
#[test]
fn event_channels_are_one_or_two_as_both_ends_say() {
    for (back, front) in [(false, false), (false, true), (true, false), (true, true)] {
        let machine = Machine::new();
        let config = netback::Config { split_event_channels: back, ..Default::default() };
        let network = Network::start(&machine, config);
        let config = Config { split_event_channels: front, ..Config::default() };
        let mut a = guest(&machine, DomId(1), config);
        let mut b = guest(&machine, DomId(2), config);
        let path = format!("/local/domain/1/device/vif/0/{}", key::EVENT_CHANNEL_TX);
        assert_eq!(machine.client().exists(&path).unwrap(), back && front, "{back} {front}");
        let mut into = vec![0; 65_536];
        send_burst(&mut b, a.mac(), 1, 60);
        receive(&mut a, &mut into);
        for _ in 0..3 {
            // More than the rings hold, so that both have events.
            send_burst(&mut a, b.mac(), 600, 100);
            (0..600).for_each(|_| assert_eq!(receive(&mut b, &mut into).0, 100));
            send_burst(&mut b, a.mac(), 600, 100);
            (0..600).for_each(|_| assert_eq!(receive(&mut a, &mut into).0, 100));
        }
        assert_nothing_missed(&network);
    }
}
