//! A vif's counters: what they count, over all its connections.

use netback::Config;
use ring_abi::DomId;
use std::time::Instant;
use testkit::net::{self, Network, frame, open, receive, send, until};
use testkit::{BOUND, Machine};
use xenbus::XenbusState;
use xenbus::stats::{Snapshot, Stats};

fn snapshot(network: &Network, domid: u16) -> Snapshot {
    network.registry.get((DomId(domid), 0)).unwrap().stats.unwrap().snapshot()
}

/// Requests and bytes of an operation.
fn moved(snapshot: &Snapshot, operation: &str) -> (u64, u64) {
    let operation = snapshot.operation(operation).unwrap();
    (operation.requests, operation.bytes)
}

fn eventually(is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {BOUND:?}");
        std::thread::yield_now();
    }
}

#[test]
fn snapshot_counts_frames_pages_and_events() {
    Network::each(|machine, network| {
        let mut a = net::guest(machine, DomId(1), Default::default());
        let mut b = net::guest(machine, DomId(2), Default::default());
        let mut into = vec![0; 2048];
        // One at a time, so that each is a batch of its own.
        for seed in 0..10 {
            let sent = frame(b.mac(), a.mac(), 1000, seed);
            send(&mut a, &sent);
            a.flush();
            receive(&mut b, &mut into);
        }
        let front = a.stats().snapshot();
        assert_eq!((moved(&front, "transmit"), moved(&front, "receive")), ((10, 10_000), (0, 0)));
        assert!(front.notifications.sent > 0 && front.grants.is_none(), "{front:?}");
        let front = b.stats().snapshot();
        assert_eq!(moved(&front, "receive"), (10, 10_000));
        assert!(front.drops.iter().all(|drop| drop.count == 0), "{front:?}");
        let sender = snapshot(network, 1);
        let receiver = snapshot(network, 2);
        assert_eq!((moved(&sender, "transmit"), moved(&sender, "receive")), ((10, 10_000), (0, 0)));
        assert_eq!((moved(&receiver, "transmit"), moved(&receiver, "receive")), ((0, 0), (10, 10_000)));
        // Of the sender's pages the heads are copied, and the payloads mapped, or copied too.
        let pages = sender.grants.unwrap();
        assert!([(10, 10), (20, 0)].contains(&(pages.copied, pages.mapped)), "{pages:?}");
        assert!(receiver.grants.unwrap().copied >= 10);
        // A frame may be received before it is counted whether that took an event.
        eventually(|| {
            let events = snapshot(network, 2).notifications;
            events.sent > 0 && events.sent + events.suppressed >= 10
        });
        assert!(sender.notifications.received > 0, "{:?}", sender.notifications);
        assert!(sender.drops.iter().chain(&receiver.drops).all(|drop| drop.count == 0));
    });
}

#[test]
fn frames_for_a_guest_without_buffers_are_counted_by_reason() {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    let mut a = net::guest(&machine, DomId(1), Default::default());
    let b = net::guest(&machine, DomId(2), Default::default());
    // The receiver takes nothing: its buffers, and then the backlog, are full.
    let sent = frame(b.mac(), a.mac(), 500, 1);
    let deadline = Instant::now() + BOUND;
    while snapshot(&network, 2).drop("no_room") == 0 {
        assert!(Instant::now() < deadline, "{:?}", snapshot(&network, 2));
        send(&mut a, &sent);
        a.flush();
    }
    assert_eq!(snapshot(&network, 2).drop("no_buffer"), 0);
}

#[test]
fn counters_are_kept_when_the_frontend_reconnects_and_removed_with_the_vif() {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    let mut peer = net::guest(&machine, DomId(2), Default::default());
    let device = machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    let mut into = vec![0; 2048];
    for connection in 1..=3 {
        let mut nic = open(&guest, 0, Default::default());
        until(&mut nic, |nic| nic.is_up());
        let sent = frame(peer.mac(), nic.mac(), 100, 1);
        send(&mut nic, &sent);
        nic.flush();
        receive(&mut peer, &mut into);
        assert_eq!(moved(&snapshot(&network, 1), "transmit"), (connection, 100 * connection));
        nic.close().unwrap();
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    }
    machine.detach(&device);
    machine.remove(&device);
    eventually(|| network.registry.get((DomId(1), 0)).is_none());
}
