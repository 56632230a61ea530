//! Vifs are closed and detached, and backends restart, while frames are in flight.

use hypervisor::local::Options;
use netback::Config;
use netfront::{Error, Nic};
use ring_abi::DomId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use testkit::net::{self, Network, frame, open, send, until};
use testkit::{BOUND, Machine, StopOnDrop};
use xenbus::XenbusState;

/// Starts a machine with a bridge and its backend.
fn start() -> (Machine, Network) {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    (machine, network)
}

/// Processes the interface's events until an error, at most for [`BOUND`].
fn until_error(nic: &mut Nic) -> Result<(), Error> {
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        nic.wait(false, Duration::from_millis(50))?;
    }
    Ok(())
}

/// Asserts that a frame arrives from one interface at the other.
fn assert_reaches(from: &mut Nic, to: &mut Nic) {
    let sent = frame(to.mac(), from.mac(), 200, 9);
    let mut into = vec![0; 2048];
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        send(from, &sent);
        from.flush();
        // Frames in flight arrive first, and ours may have been dropped for a full queue.
        while let Some((len, _)) = receive_within_50_ms(to, &mut into) {
            if into[..len] == sent {
                return;
            }
        }
    }
    panic!("no frame within {BOUND:?}");
}

fn receive_within_50_ms(nic: &mut Nic, into: &mut [u8]) -> Option<(usize, netfront::Meta)> {
    nic.recv(into).or_else(|| {
        nic.wait(false, Duration::from_millis(50)).unwrap();
        nic.recv(into)
    })
}

#[test]
fn open_in_a_domain_without_pages_to_grant_is_an_error() {
    let (machine, _network) = start();
    machine.attach_vif(DomId(1), 0);
    let guest = machine.sandbox.join_with(DomId(1), Options { arena_pages: 64 }).unwrap();
    let error = Nic::open(guest.clone(), guest.clone(), guest, 0, netfront::Config::default())
        .and_then(|mut nic| until_error(&mut nic))
        .unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
}

#[test]
fn vif_with_the_name_of_another_is_refused_and_leaves_it_alone() {
    let (machine, network) = start();
    let mut named = net::guest(&machine, DomId(1), netfront::Config::default());
    let mut other = net::guest(&machine, DomId(3), netfront::Config::default());
    assert_reaches(&mut named, &mut other);
    let received = |network: &Network| {
        let ports = network.bridge.ports().unwrap();
        ports.iter().find(|port| port.name == "vif1.0").map(|port| port.counters.rx_frames)
    };
    let before = received(&network).expect("the port of the first vif");
    assert!(before > 0);

    let spec = net::VifSpec { vifname: Some("vif1.0".into()), ..net::vif() };
    let device = machine.attach_vif_as(DomId(2), 0, &spec);
    let mut nic = open(&machine.domain(DomId(2)), 0, netfront::Config::default());
    until(&mut nic, |_| machine.state(&device.back_path()) == XenbusState::Closing);
    let error = machine.backend_error(&device).unwrap();
    assert!(error.contains("vif1.0"), "{error}");

    assert_reaches(&mut named, &mut other);
    assert!(received(&network).unwrap() >= before, "the first vif's port was replaced");
}

#[test]
fn detached_interface_is_closed_and_reports_its_removal() {
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
    let error = until_error(&mut nic).unwrap_err();
    assert!(matches!(error, Error::Removed(_)), "{error}");
}

#[test]
fn interface_closed_by_its_guest_can_be_opened_again() {
    let (machine, _network) = start();
    let mut peer = net::guest(&machine, DomId(2), netfront::Config::default());
    let device = machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    for _ in 0..3 {
        let mut nic = open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        assert_reaches(&mut peer, &mut nic);
        assert_reaches(&mut nic, &mut peer);
        nic.close().unwrap();
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    }
}

#[test]
fn interface_dropped_while_connected_can_be_opened_again() {
    let (machine, _network) = start();
    machine.attach_vif(DomId(1), 0);
    let guest = machine.domain(DomId(1));
    let mut peer = net::guest(&machine, DomId(2), netfront::Config::default());
    for _ in 0..3 {
        // Dropped while connected, without closing.
        let mut nic = open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        assert_reaches(&mut nic, &mut peer);
    }
}

#[test]
fn backend_restarted_under_traffic_forwards_frames_again() {
    let (machine, mut network) = start();
    let mut a = net::guest(&machine, DomId(1), Default::default());
    let mut b = net::guest(&machine, DomId(2), Default::default());
    let stop = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    let to_b = frame(b.mac(), a.mac(), 900, 1);
    std::thread::scope(|scope| {
        let stop = &stop;
        let received = &received;
        let _stop_on_drop = StopOnDrop(stop);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                a.send(&to_b);
                a.flush();
                a.process_events().unwrap();
            }
        });
        scope.spawn(move || {
            let mut into = vec![0; 2048];
            while !stop.load(Relaxed) {
                if b.recv(&mut into).is_some() {
                    received.fetch_add(1, Relaxed);
                } else {
                    b.wait(false, Duration::from_millis(5)).unwrap();
                }
            }
        });
        let assert_frames_arrive = || {
            let before = received.load(Relaxed);
            let deadline = Instant::now() + BOUND;
            while received.load(Relaxed) < before + 100 {
                assert!(Instant::now() < deadline, "no frames arrive within {BOUND:?}");
                std::thread::yield_now();
            }
        };
        assert_frames_arrive();
        for _ in 0..5 {
            network.restart_backend(Config::default());
            assert_frames_arrive();
        }
        // The bridge removes the port, once it has it: frames of the earlier backend may still arrive. The backend did not
        // request it.
        let deadline = Instant::now() + BOUND;
        while network.bridge.detach("vif1.0").is_err() {
            assert!(Instant::now() < deadline, "no port within {BOUND:?}");
            std::thread::yield_now();
        }
        assert_frames_arrive();
    });
}

#[test]
fn interface_detached_under_traffic_leaves_others_connected() {
    let (machine, _network) = start();
    let mut a = net::guest(&machine, DomId(1), Default::default());
    let mut b = net::guest(&machine, DomId(2), Default::default());
    for round in 3..9 {
        let device = machine.attach_vif(DomId(round), 0);
        let guest = machine.domain(DomId(round));
        let mut c = open(&guest, 0, netfront::Config::default());
        until(&mut c, Nic::is_up);
        let sent = frame([255; 6], c.mac(), 1400, 2);
        let deadline = Instant::now() + BOUND;
        machine.detach(&device);
        while c.is_up() {
            assert!(Instant::now() < deadline);
            c.send(&sent);
            c.flush();
            c.process_events().unwrap();
        }
        machine.wait_for_state(&device.back_path(), XenbusState::Closed);
        assert_reaches(&mut a, &mut b);
        assert_reaches(&mut b, &mut a);
    }
}
