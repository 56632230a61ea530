//! Frames that come by a wire are read into pages that dom0 owns in the guest's arena, and flipped as they are.

use bridge::port::pair::Pair;
use bridge::{Caps, Frame, Frames, Gso, GsoKind, Offload, Port, partial_checksum::mark_blank};
use etherparse::PacketBuilder;
use grant_table::PageAcceptor;
use netback::Config;
use netfront::handshake::RxChoice;
use netfront::{Nic, ReceivedFrame};
use ring_abi::netif::{MTU_MAX, RxRequest, Status};
use ring_abi::{DomId, PAGE_SIZE};
use std::time::{Duration, Instant};
use testkit::net::{Network, RawFrontend, Reader, VifSpec, frame, open, put, receive, until, vif};
use testkit::{BOUND, FrontendDevice, Machine, RawArena};
use xenbus::stats::{Flips, Snapshot};

const GUEST: DomId = DomId(1);
const FLIP: netfront::Config =
    netfront::Config { csum: true, gso: true, rx: RxChoice::Flip, split_event_channels: false };
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A wire whose one end reads frames into memory that the other lends, and the place where its frames come from.
fn wire(machine: &Machine, config: Config) -> (Network, Pair) {
    let network = Network::wire(machine, config);
    let (reader, outer) = Reader::new(Caps::full(MTU_MAX));
    network.bridge.attach("reader", Box::new(reader)).unwrap();
    (network, outer)
}

fn guest(machine: &Machine, config: netfront::Config) -> Nic {
    machine.attach_vif_as(GUEST, 0, &VifSpec { mtu: MTU_MAX, ..vif() });
    let mut nic = open(&machine.domain(GUEST), 0, config);
    until(&mut nic, Nic::is_up);
    nic
}

fn snapshot(network: &Network) -> Snapshot {
    network.registry.get((GUEST, 0)).unwrap().stats.unwrap().snapshot()
}

fn flips(network: &Network) -> Flips {
    snapshot(network).grants.unwrap().flips.unwrap()
}

#[test]
fn frames_read_into_lent_pages_arrive_in_them_with_nothing_beside_them() {
    for logged in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let inflight_dir = logged.then(|| inflight::InflightDir::new(directory.path()).unwrap());
        let machine = Machine::new();
        let (network, mut port) = wire(&machine, Config { inflight_dir, ..Config::default() });
        let mut nic = guest(&machine, FLIP);
        let mut received = ReceivedFrame::default();
        let mut pages = 0;
        let mut short = 0;
        let lengths = [65_535, 60, 1514, 124, 125, 4096, 4095, 4097, 9000, 130, 65_000];
        for (seed, len) in lengths.into_iter().cycle().take(600).enumerate() {
            let sent = frame(nic.mac(), FROM, len, seed as u8);
            put(&mut port, &Frame::from_slice(&sent));
            let deadline = Instant::now() + BOUND;
            while nic.recv_pages(&mut received).is_none() {
                assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
                nic.wait(false, Duration::from_millis(50)).unwrap();
            }
            let mut bytes = Vec::new();
            for page in received.pages() {
                let mut whole = vec![0; PAGE_SIZE];
                page.page().slice(0, PAGE_SIZE).unwrap().copy_to(&mut whole);
                let rest = whole.split_off(page.bytes().len());
                assert!(rest.iter().all(|byte| *byte == 0), "bytes of another frame beside one of {len}");
                bytes.extend(whole);
            }
            assert!(bytes == sent, "a frame of {len} bytes changed");
            pages += received.pages().len() as u64;
            // They have no payload beyond the private head.
            short += u64::from(len <= 124);
        }
        let Flips { flipped, direct, returned, refused } = flips(&network);
        assert_eq!((flipped, direct, refused), (pages, pages - short, 0));
        assert!(returned >= flipped, "{returned} of {flipped} pages");
        assert_eq!(snapshot(&network).grants.unwrap().copied, 0);
        assert_eq!(snapshot(&network).drops.iter().map(|drop| drop.count).sum::<u64>(), 0);
    }
}

/// What is cut for a guest without segmentation is no longer as it was read, and is copied into other pages.
#[test]
fn frame_that_is_cut_for_the_guest_arrives_in_other_pages() {
    let machine = Machine::new();
    let (network, mut port) = wire(&machine, Config::default());
    let mut nic = guest(&machine, netfront::Config { gso: false, ..FLIP });
    let builder = PacketBuilder::ethernet2(FROM, nic.mac()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut bytes = Vec::new();
    let payload: Vec<u8> = (0..20_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
    builder.tcp(1, 2, 3, 4).write(&mut bytes, &payload).unwrap();
    let mut long = Frame::from_slice(&bytes);
    long.set_offload(Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), ..Offload::NONE });
    mark_blank(&mut long).unwrap();
    let mut into = vec![0; 1 << 16];
    for _ in 0..50 {
        put(&mut port, &long);
        let mut got: Vec<u8> = Vec::new();
        while got.len() < payload.len() {
            let (len, _) = receive(&mut nic, &mut into);
            got.extend(&into[54..len]);
            nic.flush();
        }
        assert!(got == payload);
    }
    let Flips { direct, refused, .. } = flips(&network);
    assert_eq!((direct, refused), (0, 0));
}

/// Frames that wait for the guest wait in the pages that they were read into.
#[test]
fn frames_that_wait_for_the_guest_lose_no_byte_and_no_page() {
    let machine = Machine::new();
    let (network, mut port) = wire(&machine, Config::default());
    let mut nic = guest(&machine, FLIP);
    let mut into = vec![0; 1 << 16];
    for round in 0..20u8 {
        // More pages than the guest has requests.
        for seed in 0..40u8 {
            put(&mut port, &Frame::from_slice(&frame(nic.mac(), FROM, 30_000, seed ^ round)));
        }
        for seed in 0..40u8 {
            let (len, _) = receive(&mut nic, &mut into);
            assert!(
                into[..len] == frame(nic.mac(), FROM, 30_000, seed ^ round),
                "round {round}, frame {seed}"
            );
        }
    }
    let Flips { flipped, direct, refused, .. } = flips(&network);
    assert_eq!((flipped, refused), (20 * 40 * 8, 0));
    assert!(direct > 0);
    assert_eq!(snapshot(&network).drops.iter().map(|drop| drop.count).sum::<u64>(), 0);
}

/// The entries of some requests accept nothing: their frames are lost, and the pages that these were in serve others.
#[test]
fn lent_page_that_the_guest_refuses_is_lent_again() {
    let machine = Machine::new();
    let (network, mut port) = wire(&machine, Config::default());
    let device = machine.attach_vif(GUEST, 0);
    let acceptor = machine.domain(GUEST);
    let mut raw = RawFrontend::connect_as(FrontendDevice::new(acceptor.clone(), device), true);
    let entries = acceptor.accept_transfer(DomId::DOM0, 30).unwrap();
    let gone = acceptor.accept_transfer(DomId::DOM0, 30).unwrap();
    let revoked = gone.refs().to_vec();
    drop(gone);
    // One page for each entry that accepts one: the refused ones are needed.
    acceptor.balloon_out(DomId::DOM0, 30).unwrap();
    let grefs = revoked.iter().chain(entries.refs());
    for (id, gref) in grefs.enumerate() {
        assert!(raw.rx.push(&RxRequest { id: id as u16, gref: *gref }));
    }
    raw.commit();
    for expected in [Status::ERROR.0, 1000] {
        for seed in 0..30 {
            put(&mut port, &Frame::from_slice(&frame([255; 6], FROM, 1000, seed)));
        }
        let mut statuses = Vec::new();
        let deadline = Instant::now() + BOUND;
        while statuses.len() < 30 {
            assert!(Instant::now() < deadline, "{statuses:?} within {BOUND:?}");
            match raw.rx.pop().unwrap() {
                Some(slot) => statuses.push(slot.response().status),
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(statuses, [expected; 30]);
    }
    let Flips { flipped, direct, refused, .. } = flips(&network);
    assert_eq!((flipped, refused), (30, 30));
    assert!(direct > 0);
}

/// Its arena is written all over while frames are read into it, and it dies. Another one takes its place.
#[test]
fn guest_that_writes_to_lent_pages_and_dies_leaves_the_wire_in_order() {
    const MARKER: &[u8; 16] = b"the attacker's!!";
    let machine = Machine::new();
    let (mut network, mut port) = wire(&machine, Config::default());
    let mut into = vec![0; 1 << 16];
    for round in 0..8u8 {
        let guest = DomId(10 + u16::from(round));
        let device = machine.attach_vif_as(guest, 0, &VifSpec { mtu: MTU_MAX, ..vif() });
        let domain = machine.domain(guest);
        let marked = grant_table::GrantTable::share(&*domain, DomId::DOM0, 1, grant_table::Access::ReadWrite);
        let marked = marked.unwrap();
        marked.slice(0, MARKER.len()).unwrap().copy_from(MARKER);
        let mut nic = open(&domain, 0, FLIP);
        until(&mut nic, Nic::is_up);
        // Whole before anything is overwritten.
        let sent = frame(nic.mac(), FROM, 50_000, round);
        put(&mut port, &Frame::from_slice(&sent));
        let deadline = Instant::now() + BOUND;
        loop {
            let (len, _) = receive(&mut nic, &mut into);
            if into[..len] == sent {
                break;
            }
            assert!(Instant::now() < deadline, "the frame is not served");
        }
        let arena = RawArena::find(MARKER);
        let mut random = testkit::random::generator(round.into());
        for seed in 0..30 {
            let _ = port.send(Frames::of(&[Frame::from_slice(&frame(nic.mac(), FROM, 20_000, seed))]));
            port.flush().unwrap();
            for _ in 0..16 {
                let page = rand::Rng::next_u32(&mut random) % arena.pages();
                if page != arena.marked() {
                    arena.overwrite(page, rand::Rng::next_u64(&mut random));
                }
            }
            let _ = nic.recv(&mut into);
        }
        if round % 2 == 1 {
            network.restart_backend(Config::default());
        }
        // Without closing, while frames are in its pages.
        drop((nic, marked, domain));
        machine.remove(&device);
    }
}

/// Frames are in lent pages, and wait, when the backend ends: none of the guest's pages is lost, in many more rounds than it has
/// pages.
#[test]
fn backend_that_is_replaced_while_frames_are_in_lent_pages_loses_no_page() {
    let machine = Machine::new();
    let (mut network, mut port) = wire(&machine, Config::default());
    let mut nic = guest(&machine, FLIP);
    let mut into = vec![0; 1 << 16];
    for round in 0..30u8 {
        // The guest takes none of them, so that some wait.
        for seed in 0..30u8 {
            let _ =
                port.send(Frames::of(&[Frame::from_slice(&frame(nic.mac(), FROM, 65_000, seed))])).unwrap();
            port.flush().unwrap();
        }
        network.restart_backend(Config::default());
        let sent = frame(nic.mac(), FROM, 65_000, 100 + round);
        let deadline = Instant::now() + BOUND;
        loop {
            assert!(Instant::now() < deadline, "round {round}: no frame within {BOUND:?}");
            let _ = port.send(Frames::of(&[Frame::from_slice(&sent)])).unwrap();
            port.flush().unwrap();
            nic.wait(false, Duration::from_millis(20)).unwrap();
            let mut is_served = false;
            while let Some((len, _)) = nic.recv(&mut into) {
                is_served |= into[..len] == sent;
            }
            if is_served {
                break;
            }
        }
    }
    assert!(flips(&network).direct > 0);
}
