//! Page flipping between netback and netfront: what arrives, what is counted, and who loses what.

use bridge::port::pair::Pair;
use bridge::{Caps, Frame, Frames, Gso, GsoKind, Offload, Port, partial_checksum::mark_blank};
use etherparse::PacketBuilder;
use inflight::InflightDir;
use netback::Config;
use netfront::handshake::RxChoice;
use netfront::{Nic, ReceivedFrame};
use ring_abi::netif::MTU_MAX;
use ring_abi::{DomId, PAGE_SIZE};
use std::time::{Duration, Instant};
use testkit::net::{self, Network, VifSpec, frame, open, put, receive, send, until, vif};
use testkit::{BOUND, Machine};
use xenbus::stats::{Flips, Snapshot};

const FLIP: netfront::Config =
    netfront::Config { csum: true, gso: true, rx: RxChoice::Flip, split_event_channels: false };

/// A guest with an interface of the largest MTU, whose pages are flipped.
fn flipped(machine: &Machine, domid: u16) -> Nic {
    machine.attach_vif_as(DomId(domid), 0, &VifSpec { mtu: MTU_MAX, ..vif() });
    let mut nic = open(&machine.domain(DomId(domid)), 0, FLIP);
    until(&mut nic, Nic::is_up);
    assert!(nic.flips());
    nic
}

fn snapshot(network: &Network, domid: u16) -> Snapshot {
    network.registry.get((DomId(domid), 0)).unwrap().stats.unwrap().snapshot()
}

fn flips(network: &Network, domid: u16) -> Flips {
    snapshot(network, domid).grants.unwrap().flips.unwrap()
}

/// A port of the test's, on the network's bridge.
fn dom0_port(network: &Network) -> Pair {
    let (inner, outer) = Pair::new(Caps::full(MTU_MAX), 64).unwrap();
    network.bridge.attach("dom0", Box::new(inner)).unwrap();
    outer
}

#[test]
fn frames_of_any_length_arrive_in_flipped_pages() {
    Network::each(|machine, network| {
        let mut nic = flipped(machine, 1);
        let mut port = dom0_port(network);
        let mut into = vec![0; 1 << 16];
        let mut pages = 0;
        let lengths = [60, 1514, 4095, 4096, 4097, 9000, 65_000, 65_535];
        for (seed, len) in lengths.into_iter().cycle().take(400).enumerate() {
            let sent = frame(nic.mac(), [2, 0, 0, 0, 0, 1], len, seed as u8);
            put(&mut port, &Frame::from_slice(&sent));
            let (len, _) = receive(&mut nic, &mut into);
            assert_eq!(into[..len], sent);
            pages += len.div_ceil(PAGE_SIZE) as u64;
        }
        let Flips { flipped, direct, returned, refused } = flips(network, 1);
        // Where a learning bridge's frames go is known only once they are read.
        assert_eq!((flipped, direct, refused), (pages, 0, 0));
        assert!(returned >= flipped, "{returned} of {flipped} pages");
        // Nothing was copied by grant.
        assert_eq!(snapshot(network, 1).grants.unwrap().copied, 0);
        assert_eq!(snapshot(network, 1).drops.iter().map(|drop| drop.count).sum::<u64>(), 0);
    });
}

#[test]
fn slot_with_an_extra_leaves_its_entry_to_be_posted_again() {
    Network::each(|machine, network| {
        let mut nic = flipped(machine, 1);
        let mut port = dom0_port(network);
        let mut bytes = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], nic.mac()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.tcp(1, 2, 3, 4).write(&mut bytes, &[5; 20_000]).unwrap();
        let mut long = Frame::from_slice(&bytes);
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        long.set_offload(Offload { gso, ..Offload::NONE });
        mark_blank(&mut long).unwrap();
        let sent = long.to_vec();
        let mut into = vec![0; 1 << 16];
        // The extras alone use up the ring's slots several times.
        for _ in 0..1000 {
            put(&mut port, &long);
            let (len, meta) = receive(&mut nic, &mut into);
            assert!(into[..len] == sent && meta.gso.is_some_and(|gso| gso.size == 1448));
        }
        assert_eq!(flips(network, 1).flipped, 5 * 1000);
    });
}

#[test]
fn page_beyond_a_frame_is_zero_whatever_was_in_it() {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    let mut nic = flipped(&machine, 1);
    let mut port = dom0_port(&network);
    let mut received = ReceivedFrame::default();
    for (seed, len) in [4096, 60, 4096, 1514, 6000, 60].into_iter().cycle().take(600).enumerate() {
        let sent = frame(nic.mac(), [2, 0, 0, 0, 0, 1], len, seed as u8);
        put(&mut port, &Frame::from_slice(&sent));
        let deadline = Instant::now() + BOUND;
        while nic.recv_pages(&mut received).is_none() {
            assert!(Instant::now() < deadline, "no frame within {BOUND:?}");
            nic.wait(false, Duration::from_millis(50)).unwrap();
        }
        let mut bytes = Vec::new();
        for page in received.pages() {
            let start = bytes.len();
            bytes.resize(start + page.bytes().len(), 0);
            page.bytes().copy_to(&mut bytes[start..]);
            let mut whole = vec![0; PAGE_SIZE];
            page.page().slice(0, PAGE_SIZE).unwrap().copy_to(&mut whole);
            let rest = whole.split_off(page.bytes().len());
            assert!(rest.iter().all(|byte| *byte == 0), "bytes of another frame beside one of {len} bytes");
        }
        assert_eq!(bytes, sent);
    }
}

#[test]
fn guest_that_keeps_its_pages_loses_its_own_frames_and_is_served_again() {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    let mut keeper = flipped(&machine, 1);
    let mut other = flipped(&machine, 2);
    let mut port = dom0_port(&network);
    // The guest keeps every page until it has none to give up.
    let mut kept = Vec::new();
    let mut received = ReceivedFrame::default();
    let full = |to: [u8; 6]| Frame::from_slice(&frame(to, [2, 0, 0, 0, 0, 1], 65_000, 1));
    let deadline = Instant::now() + BOUND;
    while snapshot(&network, 1).drop("no_room") == 0 {
        assert!(Instant::now() < deadline, "{} frames kept", kept.len());
        put(&mut port, &full(keeper.mac()));
        while keeper.recv_pages(&mut received).is_some() {
            kept.push(std::mem::take(&mut received));
        }
        keeper.flush();
    }
    assert!(!kept.is_empty());
    // Others are served meanwhile.
    let mut into = vec![0; 1 << 16];
    put(&mut port, &full(other.mac()));
    assert_eq!(receive(&mut other, &mut into).0, 65_000);
    // Once the pages are free, so is the guest.
    kept.clear();
    keeper.flush();
    while keeper.recv(&mut into).is_some() {}
    keeper.flush();
    let sent = frame(keeper.mac(), other.mac(), 100, 9);
    let deadline = Instant::now() + BOUND;
    loop {
        assert!(Instant::now() < deadline, "not served within {BOUND:?}");
        send(&mut other, &sent);
        other.flush();
        keeper.wait(false, Duration::from_millis(50)).unwrap();
        if keeper.recv(&mut into).is_some_and(|(len, _)| into[..len] == sent) {
            break;
        }
    }
}

#[test]
fn backend_that_is_replaced_has_a_page_for_every_buffer() {
    for logged in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let inflight_dir = logged.then(|| InflightDir::new(directory.path()).unwrap());
        let config = Config { inflight_dir, ..Config::default() };
        let machine = Machine::new();
        let mut network = Network::start(&machine, config.clone());
        let mut nic = flipped(&machine, 1);
        let mut into = vec![0; 1 << 16];
        let mut port = dom0_port(&network);
        // Many more pages in all than the guest has.
        for round in 0..40u8 {
            network.restart_backend(config.clone());
            let deadline = Instant::now() + BOUND;
            let sent = frame(nic.mac(), [2, 0, 0, 0, 0, 1], 65_000, round);
            // Frames are lost while the vif is detached.
            loop {
                assert!(Instant::now() < deadline, "round {round}: no frame within {BOUND:?}");
                let _ = port.send(Frames::of(&[Frame::from_slice(&sent)])).unwrap();
                port.flush().unwrap();
                nic.wait(false, Duration::from_millis(20)).unwrap();
                if nic.recv(&mut into).is_some_and(|(len, _)| into[..len] == sent) {
                    break;
                }
            }
            while nic.recv(&mut into).is_some() {}
        }
    }
}

#[test]
fn choice_is_made_for_each_interface() {
    let machine = Machine::new();
    let network = Network::start(&machine, Config::default());
    let config = |rx| netfront::Config { rx, ..netfront::Config::default() };
    // Frames of 1,514 bytes are copied; those of a page and more are not.
    assert!(!net::guest(&machine, DomId(1), config(RxChoice::Auto)).flips());
    assert!(net::guest(&machine, DomId(2), netfront::Config { rx: RxChoice::Auto, ..FLIP }).flips());
    assert!(!net::guest(&machine, DomId(3), netfront::Config { rx: RxChoice::Copy, ..FLIP }).flips());
    assert!(net::guest(&machine, DomId(4), config(RxChoice::Flip)).flips());
    assert_eq!(flips(&network, 1), Flips::default());
}
