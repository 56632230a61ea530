//! Vifs come and go: closing, unplugging, backends that end and return, with frames on the way.

use crate::machine::{BOUND, Machine, frame, send, until};
use hypervisor::local::Options;
use hypervisor::{DomId, Hypervisor};
use netback::Config;
use netfront::{Error, Nic};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use xenstore::xenbus::Device;
use xenstore::{Client, Nodes, XenbusState};

/// What a toolstack does to unplug.
fn unplug(client: &mut Client, device: &Device) {
    client.write(&format!("{}/online", device.back_path()), "0").unwrap();
    client.write(&format!("{}/state", device.back_path()), "5").unwrap();
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
    let (bytes, mut into) = (frame(to.mac(), from.mac(), 200, 9), vec![0; 2048]);
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        send(from, &bytes);
        from.flush();
        // What was on the way comes first, and may have left no room for ours.
        while let Some((len, _)) = soon(to, &mut into) {
            if into[..len] == bytes {
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
    let machine = Machine::new();
    machine.plug(1, 0, &[]);
    let guest = machine.sandbox.join_with(DomId(1), Options { arena_pages: 64 }).unwrap();
    let store = Client::new(guest.store().unwrap());
    let error = Nic::open(guest, store, 0, netfront::Config::default())
        .and_then(|mut nic| until_error(&mut nic))
        .unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
}

#[test]
fn an_unplugged_interface_closes_and_goes() {
    let machine = Machine::new();
    let device = machine.plug(1, 0, &[]);
    let guest = machine.join(1);
    let mut nic = machine.open(&guest, 0, netfront::Config::default());
    until(&mut nic, Nic::is_up);
    assert_eq!(machine.bridge.ports().unwrap()[0].name, "vif1.0");
    let mut client = machine.client();
    unplug(&mut client, &device);
    until(&mut nic, |nic| !nic.is_up());
    machine.await_state(&device.back_path(), XenbusState::Closed);
    assert!(machine.bridge.ports().unwrap().is_empty());
    client.rm(&device.back_path()).unwrap();
    client.rm(&device.front_path()).unwrap();
    let gone = until_error(&mut nic).unwrap_err();
    assert!(matches!(gone, Error::Removed(_)), "{gone}");
}

#[test]
fn an_interface_closed_by_its_guest_can_be_opened_again() {
    let machine = Machine::new();
    let mut peer = machine.guest(2, netfront::Config::default());
    let device = machine.plug(1, 0, &[]);
    let guest = machine.join(1);
    for _ in 0..3 {
        let mut nic = machine.open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        talks(&mut peer, &mut nic);
        talks(&mut nic, &mut peer);
        nic.close().unwrap();
        machine.await_state(&device.back_path(), XenbusState::Closed);
    }
}

#[test]
fn a_guest_process_that_vanishes_is_replaced() {
    let machine = Machine::new();
    machine.plug(1, 0, &[]);
    let guest = machine.join(1);
    let mut peer = machine.guest(2, netfront::Config::default());
    for _ in 0..3 {
        // Dropped without a word, rings and all.
        let mut nic = machine.open(&guest, 0, netfront::Config::default());
        until(&mut nic, Nic::is_up);
        talks(&mut nic, &mut peer);
    }
}

#[test]
fn interfaces_survive_backends_that_end_under_traffic() {
    let mut machine = Machine::new();
    let (mut a, mut b) = (machine.guest(1, Default::default()), machine.guest(2, Default::default()));
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
            machine.start_backend(Config::default());
            flows();
        }
        // A port that is lost without the backend being asked.
        drop(machine.bridge.detach("vif1.0").unwrap());
        flows();
    });
}

#[test]
fn unplugging_under_traffic_leaves_the_others_alone() {
    let machine = Machine::new();
    let (mut a, mut b) = (machine.guest(1, Default::default()), machine.guest(2, Default::default()));
    for round in 3..9 {
        let device = machine.plug(round, 0, &[]);
        let guest = machine.join(round);
        let mut c = machine.open(&guest, 0, netfront::Config::default());
        until(&mut c, Nic::is_up);
        let (bytes, deadline) = (frame([255; 6], c.mac(), 1400, 2), Instant::now() + BOUND);
        let mut client = machine.client();
        unplug(&mut client, &device);
        while c.is_up() {
            assert!(Instant::now() < deadline);
            c.send(&bytes);
            c.flush();
            c.process_events().unwrap();
        }
        machine.await_state(&device.back_path(), XenbusState::Closed);
        talks(&mut a, &mut b);
        talks(&mut b, &mut a);
    }
}
