//! Every byte of a frame arrives, between guests and between a guest and dom0, for every length.

use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Frame, Frames, Port};
use netfront::Config;
use ring_abi::DomId;
use std::time::Instant;
use testkit::BOUND;
use testkit::net::{Network, VifSpec, frame, guest, open, receive, send, until, vif};

const DOM0: [u8; 6] = [2, 0, 0, 0, 0, 1];

#[test]
fn frames_of_every_length_between_guests_arrive_whole() {
    Network::each(|machine, _| {
        let mut a = guest(machine, DomId(1), Config::default());
        let mut b = guest(machine, DomId(2), Config::default());
        let mut into = vec![0; 65_536];
        // The bridge learns B's address first, so that frames are not flooded.
        let hello = frame(a.mac(), b.mac(), 60, 0);
        send(&mut b, &hello);
        b.flush();
        receive(&mut a, &mut into);
        for len in 14..=1514 {
            let sent = frame(b.mac(), a.mac(), len, len as u8);
            send(&mut a, &sent);
            a.flush();
            let (got, _) = receive(&mut b, &mut into);
            assert_eq!(into[..got], sent, "{len} bytes");
        }
        assert_eq!((b.counters().all_dropped(), a.counters().tx_errors), (0, 0));
    });
}

#[test]
fn frames_longer_than_a_page_arrive_whole_with_sg() {
    Network::each(|machine, _| {
        let [mut a, mut b] = [1, 2].map(DomId).map(|domid| {
            machine.attach_vif_as(domid, 0, &VifSpec { mtu: 65_521, ..vif() });
            open(&machine.domain(domid), 0, Config::default())
        });
        until(&mut a, netfront::Nic::is_up);
        until(&mut b, netfront::Nic::is_up);
        assert_eq!(a.mtu(), 65_521);
        let mut into = vec![0; 65_536];
        for len in [1515, 4095, 4096, 4097, 4224, 8192, 9014, 40_000, 65_534, 65_535] {
            let sent = frame(b.mac(), a.mac(), len, 7);
            send(&mut a, &sent);
            a.flush();
            let (got, _) = receive(&mut b, &mut into);
            assert!(into[..got] == sent, "{len} bytes");
        }
    });
}

#[test]
fn bursts_in_both_directions_arrive_in_order() {
    Network::each(|machine, _| {
        const COUNT: usize = 3000;
        let mut a = guest(machine, DomId(1), Config::default());
        let mut b = guest(machine, DomId(2), Config::default());
        let mac_a = a.mac();
        let mac_b = b.mac();
        let mut into = vec![0; 2048];
        let mut sent = 0;
        let mut got_a = 0;
        let mut got_b = 0;
        let deadline = Instant::now() + BOUND;
        while got_a < COUNT || got_b < COUNT {
            assert!(Instant::now() < deadline, "{sent} sent, {got_a} and {got_b} received");
            // No more frames in flight than a queue holds, so that none is dropped.
            while sent < COUNT && sent < got_a.min(got_b) + 100 {
                for (nic, to) in [(&mut a, mac_b), (&mut b, mac_a)] {
                    let from = nic.mac();
                    send(nic, &frame(to, from, 60 + sent % 1400, (sent % 251) as u8));
                }
                sent += 1;
            }
            for (nic, got, from) in [(&mut a, &mut got_a, mac_b), (&mut b, &mut got_b, mac_a)] {
                nic.flush();
                let to = nic.mac();
                while let Some((len, _)) = nic.recv(&mut into) {
                    let expected = frame(to, from, 60 + *got % 1400, (*got % 251) as u8);
                    assert_eq!(into[..len], expected, "frame {got}");
                    *got += 1;
                }
            }
        }
    });
}

#[test]
fn frames_between_guest_and_dom0_arrive_whole() {
    Network::each(|machine, network| {
        let (inner, mut outer) = Pair::new(Caps::plain(1500), 512).unwrap();
        network.bridge.attach("dom0", Box::new(inner)).unwrap();
        let mut nic = guest(machine, DomId(1), Config::default());
        let mut batch = Batch::new(64);
        let mut into = vec![0; 2048];
        for len in [14, 60, 127, 128, 129, 1000, 1514] {
            let sent = frame(DOM0, nic.mac(), len, 3);
            send(&mut nic, &sent);
            nic.flush();
            let deadline = Instant::now() + BOUND;
            while batch.is_empty() {
                assert!(Instant::now() < deadline, "{len} bytes lost");
                outer.recv(&mut batch).unwrap();
            }
            assert_eq!(batch.frames()[0].to_vec(), sent);
            // The payload is sent back from the guest's own pages.
            let mut back = batch.frames()[0].clone();
            back.head_mut()[..12].rotate_left(6);
            batch.clear();
            outer.send(Frames::of(std::slice::from_ref(&back))).unwrap();
            outer.flush().unwrap();
            drop::<Frame>(back);
            let (got, _) = receive(&mut nic, &mut into);
            assert_eq!(into[12..got], sent[12..], "{len} bytes");
            assert_eq!(into[..6], nic.mac());
        }
    });
}
