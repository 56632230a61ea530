//! Vifs come and go: closing, unplugging, backends that end and return, with frames on the way.

use hypervisor::local::Options;
use hypervisor::{DomId, Hypervisor};
use netback::Config;
use netfront::{Error, Nic};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::{self, Network, frame, open, send, until};
use testkit::{BOUND, Machine};
use xenbus::XenbusState;
use xenstore::Client;

/// A machine with a bridge and its backend.
fn start() -> (Machine, Network) {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    (machine, network)
}

/// Lets the interface do what it does until that fails; within bounds it must.
fn until_error(nic: &mut Nic) -> Result<(), Error> {
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        nic.wait(false, Duration::from_millis(50))?;
    }
    Ok(())
}

/// Ends the other threads, also where a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Whether a frame comes through from one to the other.
fn talks(from: &mut Nic, to: &mut Nic) {
    let (sent, mut into) = (frame(to.mac(), from.mac(), 200, 9), vec![0; 2048]);
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        send(from, &sent);
        from.flush();
        // What was on the way comes first, and may have left no room for ours.
        while let Some((len, _)) = soon(to, &mut into) {
            if into[..len] == sent {
                return;
            }
        }
    }
    panic!("no frame within {BOUND:?}");
}

fn soon(nic: &mut Nic, into: &mut [u8]) -> Option<(usize, netfront::Meta)> {
    nic.recv(into).or_else(|| {
        nic.wait(false, Duration::from_millis(50)).unwrap();
        nic.recv(into)
    })
}

#[test]
fn a_domain_without_pages_to_grant_is_told_so() {
    let (machine, _network) = start();
    machine.attach_vif(DomId(1), 0);
    let guest = machine.sandbox.join_with(DomId(1), Options { arena_pages: 64 }).unwrap();
    let store = Client::new(guest.store().unwrap());
    let error = Nic::open(guest, store, 0, netfront::Config::default())
        .and_then(|mut nic| until_error(&mut nic))
        .unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
}

#[test]
fn an_unplugged_interface_closes_and_goes() {
    let (machine, network) = start();
    let device = machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    let mut nic = open(&guest, 0, netfront::Config::default());
    until(&mut nic, Nic::is_up);
    assert_eq!(network.bridge.ports().unwrap()[0].name, "vif1.0");
    machine.detach(&device);
    until(&mut nic, |nic| !nic.is_up());
    machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    assert!(network.bridge.ports().unwrap().is_empty());
    machine.remove(&device);
    let gone = until_error(&mut nic).unwrap_err();
    assert!(matches!(gone, Error::Removed(_)), "{gone}");
}

#[test]
fn an_interface_closed_by_its_guest_can_be_opened_again() {
    let (machine, _network) = start();
    let mut peer = net::guest(&machine, DomId(2), netfront::Config::default());
    let device = machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    for _ in 0..3 {
        let mut nic = open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        talks(&mut peer, &mut nic);
        talks(&mut nic, &mut peer);
        nic.close().unwrap();
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    }
}

#[test]
fn a_guest_process_that_vanishes_is_replaced() {
    let (machine, _network) = start();
    machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    let mut peer = net::guest(&machine, DomId(2), netfront::Config::default());
    for _ in 0..3 {
        // Dropped without a word, rings and all.
        let mut nic = open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        talks(&mut nic, &mut peer);
    }
}

#[test]
fn interfaces_survive_backends_that_end_under_traffic() {
    let (machine, mut network) = start();
    let (mut a, mut b) = (
        net::guest(&machine, DomId(1), Default::default()),
        net::guest(&machine, DomId(2), Default::default()),
    );
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let (to_b, into) = (frame(b.mac(), a.mac(), 900, 1), vec![0; 2048]);
    std::thread::scope(|scope| {
        let (stop, received) = (&stop, &received);
        let _ends = Ends(stop);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                a.send(&to_b);
                a.flush();
                a.process_events().unwrap();
            }
        });
        scope.spawn(move || {
            let mut into = into;
            while !stop.load(Relaxed) {
                if b.recv(&mut into).is_some() {
                    received.fetch_add(1, Relaxed);
                } else {
                    b.wait(false, Duration::from_millis(5)).unwrap();
                }
            }
        });
        let flows = || {
            let (before, deadline) = (received.load(Relaxed), Instant::now() + BOUND);
            while received.load(Relaxed) < before + 100 {
                assert!(Instant::now() < deadline, "no frames come through");
                std::thread::yield_now();
            }
        };
        flows();
        for _ in 0..5 {
            network.restart_backend(Config::default());
            flows();
        }
        // A port that is lost without the backend being asked.
        drop(network.bridge.detach("vif1.0").unwrap());
        flows();
    });
}

#[test]
fn unplugging_under_traffic_leaves_the_others_alone() {
    let (machine, _network) = start();
    let (mut a, mut b) = (
        net::guest(&machine, DomId(1), Default::default()),
        net::guest(&machine, DomId(2), Default::default()),
    );
    for round in 3..9 {
        let device = machine.attach_vif(DomId(round), 0);
        let guest = machine.domain(DomId(round));
        let mut c = open(&guest, 0, netfront::Config::default());
        until(&mut c, Nic::is_up);
        let (sent, deadline) = (frame([255; 6], c.mac(), 1400, 2), Instant::now() + BOUND);
        machine.detach(&device);
        while c.is_up() {
            assert!(Instant::now() < deadline);
            c.send(&sent);
            c.flush();
            c.process_events().unwrap();
        }
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
        talks(&mut a, &mut b);
        talks(&mut b, &mut a);
    }
}
