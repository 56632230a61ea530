//! Hostile guests whose pages are flipped: what they accept, give up and write is not what they say. Whatever a guest
//! does, dom0 and the other guests' interfaces work on, and no other guest's byte is lost or changed.

use bridge::port::pair::Pair;
use bridge::{Caps, Frame, Frames, Port};
use grant_table::{AcceptTransfer, Access, GrantTable, PageAcceptor};
use hypervisor::local::Domain;
use netfront::Nic;
use netfront::handshake::RxChoice;
use rand::{Rng, RngExt};
use ring_abi::netif::{RxRequest, Status};
use ring_abi::{DomId, GrantRef};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use testkit::net::{self, Network, RawFrontend, frame, receive};
use testkit::{BOUND, FrontendDevice, Machine, RawArena, StopOnDrop, random};
use xenbus::XenbusState;
use xenbus::stats::{Flips, Snapshot};

const ATTACKER: DomId = DomId(1);
/// At the start of the attacker's page, by which its arena is found.
const MARKER: &[u8; 16] = b"the attacker's!!";

/// A machine of the attacker, and of an honest guest whose pages are flipped too.
struct Attack {
    raw: RawFrontend,
    acceptor: Arc<Domain>,
    honest: Nic,
    port: Pair,
    network: Network,
    _machine: Machine,
}

impl Attack {
    fn start() -> Attack {
        let machine = Machine::new();
        let network = Network::start(&machine, netback::Config::default());
        let flip = netfront::Config { rx: RxChoice::Flip, ..netfront::Config::default() };
        let honest = net::guest(&machine, DomId(20), flip);
        let device = machine.attach_vif(ATTACKER, 0);
        let acceptor = machine.domain(ATTACKER);
        let raw = RawFrontend::connect_as(FrontendDevice::new(acceptor.clone(), device), true);
        raw.page.slice(0, MARKER.len()).unwrap().copy_from(MARKER);
        let (inner, port) = Pair::new(Caps::plain(1500), 64).unwrap();
        network.bridge.attach("dom0", Box::new(inner)).unwrap();
        Attack { raw, acceptor, honest, port, network, _machine: machine }
    }

    fn accept(&self, entries: usize) -> Box<dyn AcceptTransfer> {
        self.acceptor.accept_transfer(DomId::DOM0, entries).unwrap()
    }

    fn post(&mut self, grefs: &[GrantRef]) {
        for (id, gref) in grefs.iter().enumerate() {
            assert!(self.raw.rx.push(&RxRequest { id: id as u16, gref: *gref }));
        }
        self.raw.commit();
    }

    /// Sends broadcast frames, for the attacker and the honest guest, which receives each without a changed byte.
    fn broadcast(&mut self, count: u8) {
        let mut into = vec![0; 4096];
        for seed in 0..count {
            let sent = frame([255; 6], [2, 0, 0, 0, 0, 1], 1000, seed);
            let deadline = Instant::now() + BOUND;
            while self.port.send(Frames::of(&[Frame::from_slice(&sent)])).unwrap() == 0 {
                assert!(Instant::now() < deadline, "no room within {BOUND:?}");
                std::thread::yield_now();
            }
            self.port.flush().unwrap();
            let (len, _) = receive(&mut self.honest, &mut into);
            assert!(into[..len] == sent, "a frame of the honest guest's changed");
            self.honest.flush();
        }
    }

    /// The statuses of the next responses.
    fn statuses(&mut self, count: usize) -> Vec<i16> {
        let deadline = Instant::now() + BOUND;
        let mut statuses = Vec::new();
        while statuses.len() < count {
            assert!(Instant::now() < deadline, "{statuses:?} within {BOUND:?}");
            match self.raw.rx.pop().unwrap() {
                Some(slot) => statuses.push(slot.response().status),
                None => std::thread::yield_now(),
            }
        }
        statuses
    }

    fn snapshot(&self) -> Snapshot {
        self.network.registry.get((ATTACKER, 0)).unwrap().stats.unwrap().snapshot()
    }

    fn flips(&self) -> Flips {
        self.snapshot().grants.unwrap().flips.unwrap()
    }

    fn assert_connected(&self) {
        self.raw.device.wait_for_backend(XenbusState::Connected);
        assert!(self.network.bridge.ports().unwrap().iter().any(|port| port.name == "vif1.0"));
    }

    /// Runs `attack` in a thread while frames arrive; the vif may be closed by it.
    fn during(mut self, attack: impl Fn(&RawArena, &mut dyn Rng) + Send + Sync) {
        let arena = RawArena::find(MARKER);
        let entries = self.accept(64);
        self.acceptor.balloon_out(DomId::DOM0, 64).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                let mut random = random::generator(7);
                while !stop.load(Relaxed) {
                    attack(&arena, &mut random);
                }
            });
            for round in 0..40 {
                let _ = self.raw.rx.push(&RxRequest { id: 0, gref: entries.refs()[round % 64] });
                self.raw.commit();
                self.broadcast(4);
                while let Ok(Some(_)) = self.raw.rx.pop() {}
            }
        });
        self.broadcast(4);
    }
}

#[test]
fn requests_that_accept_no_page_lose_a_frame_each() {
    let mut attack = Attack::start();
    let entries = attack.accept(3);
    let gone = attack.accept(1);
    let revoked = gone.refs()[0];
    drop(gone);
    attack.acceptor.balloon_out(DomId::DOM0, 8).unwrap();
    let granted = attack.raw.page.refs()[0];
    let beyond = GrantRef(u32::MAX);
    let never = GrantRef(3000);
    let first = entries.refs()[0];
    // Of another kind, beyond the table, never given, revoked; one that accepts; and the same once more.
    attack.post(&[granted, beyond, never, revoked, first, first, entries.refs()[1]]);
    attack.broadcast(7);
    let refused = Status::ERROR.0;
    let expected = [refused, refused, refused, refused, 1000, refused, 1000];
    assert_eq!(attack.statuses(7), expected);
    assert_eq!((attack.flips().flipped, attack.flips().refused), (2, 5));
    assert_eq!(attack.snapshot().drop("no_buffer"), 5);
    let mut marker = [0; 16];
    attack.raw.page.slice(0, 16).unwrap().copy_to(&mut marker[..]);
    assert_eq!(&marker, MARKER, "a page that is granted is no page to be flipped into");
    attack.assert_connected();
}

#[test]
fn guest_that_gives_up_no_page_loses_its_frames() {
    let mut attack = Attack::start();
    let entries = attack.accept(8);
    attack.post(entries.refs());
    attack.broadcast(8);
    assert_eq!(attack.statuses(8), [Status::ERROR.0; 8]);
    assert_eq!(attack.snapshot().drop("no_buffer"), 8);
    assert_eq!(attack.flips(), Flips::default());
    attack.assert_connected();
    // Once it gives up some, it is served.
    attack.acceptor.balloon_out(DomId::DOM0, 8).unwrap();
    attack.post(entries.refs());
    attack.broadcast(8);
    assert_eq!(attack.statuses(8), [1000; 8]);
}

#[test]
fn pages_given_up_that_are_no_pages_are_not_taken() {
    let mut attack = Attack::start();
    let arena = RawArena::find(MARKER);
    // Beyond the arena, in its grant table, and one that was given up already.
    attack.acceptor.balloon_out(DomId::DOM0, 1).unwrap();
    for frame in [arena.pages(), u32::MAX, 0, 1] {
        arena.give_up(frame);
    }
    let entries = attack.accept(4);
    attack.post(entries.refs());
    attack.broadcast(4);
    let statuses = attack.statuses(4);
    assert_eq!(statuses.iter().filter(|status| **status == 1000).count(), 1, "{statuses:?}");
    assert_eq!(attack.flips().flipped, 1);
    attack.assert_connected();
}

/// The guest gives up the page of its own that it has granted, and every other that it shares: also its rings'.
#[test]
fn pages_given_up_while_they_are_shared_harm_the_guest_alone() {
    let mut attack = Attack::start();
    let arena = RawArena::find(MARKER);
    let marked = arena.marked();
    // The rings were shared just before.
    for frame in [marked, marked - 1, marked - 2, marked] {
        arena.give_up(frame);
    }
    let entries = attack.accept(16);
    attack.post(entries.refs());
    attack.broadcast(16);
    // A transmit that refers to the page that dom0 owns now, and fills.
    let slot = attack.raw.request(0, 0, 60, ring_abi::netif::TxFlags::empty()).into();
    let _ = attack.raw.tx.push(&slot);
    attack.raw.commit();
    // What it sends is in no order with what dom0 sends.
    let mut into = vec![0; 4096];
    let sent = frame(attack.honest.mac(), [2, 0, 0, 0, 0, 1], 1000, 77);
    assert_eq!(attack.port.send(Frames::of(&[Frame::from_slice(&sent)])).unwrap(), 1);
    attack.port.flush().unwrap();
    while into[..1000] != sent {
        receive(&mut attack.honest, &mut into);
    }
}

#[test]
fn queue_indexes_of_any_value_harm_the_guest_alone() {
    Attack::start().during(|arena, random| arena.set_balloon_indexes(random.next_u32(), random.next_u32()));
}

#[test]
fn entries_rewritten_during_transfers_harm_the_guest_alone() {
    Attack::start().during(|arena, random| {
        // Any kind, with any of the flags of a transfer under way, for dom0 and others, of any frame.
        let gref = GrantRef(random.random_range(8..512));
        let head = u32::from(random.random::<u8>() & 0x1f) | u32::from(random.random_ratio(1, 4)) << 16;
        arena.set_entry(gref, [head, random.next_u32() % arena.pages()]);
    });
}

#[test]
fn pages_that_the_guest_keeps_using_harm_the_guest_alone() {
    let attack = Attack::start();
    let domain = attack.acceptor.clone();
    attack.during(move |arena, random| {
        for _ in 0..16 {
            arena.overwrite(random.next_u32() % arena.pages(), random.next_u64());
        }
        // It also shares and frees pages meanwhile.
        let _ = domain.share(DomId::DOM0, 4, Access::ReadWrite);
    });
}

#[test]
fn guest_that_dies_at_any_time_leaves_the_others_served() {
    let machine = Machine::new();
    let network = Network::start(&machine, netback::Config::default());
    let flip = netfront::Config { rx: RxChoice::Flip, ..netfront::Config::default() };
    let mut honest = net::guest(&machine, DomId(20), flip);
    let (inner, mut port) = Pair::new(Caps::plain(1500), 64).unwrap();
    network.bridge.attach("dom0", Box::new(inner)).unwrap();
    let mut into = vec![0; 4096];
    for round in 0..12u8 {
        let device = machine.attach_vif(ATTACKER, 0);
        let domain = machine.domain(ATTACKER);
        let mut nic = net::open(&domain, 0, flip);
        net::until(&mut nic, Nic::is_up);
        for seed in 0..=round {
            let sent = frame([255; 6], [2, 0, 0, 0, 0, 1], 1000, seed);
            let deadline = Instant::now() + BOUND;
            while port.send(Frames::of(&[Frame::from_slice(&sent)])).unwrap() == 0 {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
            port.flush().unwrap();
            assert!(receive(&mut honest, &mut into).0 == 1000 && into[..1000] == sent);
            honest.flush();
            // Some are received, some not, some pages given up again.
            if seed % 2 == 0 {
                let _ = nic.recv(&mut vec![0; 4096]);
            }
            if seed % 3 == 0 {
                nic.flush();
            }
        }
        // Without closing.
        drop((nic, domain));
        machine.remove(&device);
    }
}
