//! Page flipping on the local hypervisor.

use grant_table::OwnedPage;
use grant_table::flip::{Receiver, Sender};
use hypervisor::local::{Options, Sandbox};
use ring_abi::DomId;
use ring_abi::grant::Status;
use std::time::Duration;

const GUEST: DomId = DomId(1);

fn setup(entries: usize) -> (Sandbox, Sender, Receiver) {
    let sandbox = Sandbox::new().unwrap();
    let small = Options { arena_pages: 64 };
    let guest = sandbox.join_with(GUEST, small).unwrap();
    let receiver = Receiver::new(guest, DomId::DOM0, entries).unwrap();
    let sender = Sender::new(sandbox.join(DomId::DOM0).unwrap(), GUEST);
    (sandbox, sender, receiver)
}

fn byte(page: &OwnedPage) -> u8 {
    let mut byte = [0u8];
    page.slice(4000, 1).unwrap().copy_to(&mut byte);
    byte[0]
}

#[test]
fn sender_and_receiver_of_equal_size_never_run_out_of_pages() {
    let (_sandbox, mut sender, mut receiver) = setup(8);
    for round in 0..1_000u32 {
        for entry in 0..8 {
            assert!(sender.refill(1, 8).unwrap() > 0, "as many pages as entries");
            let page = sender.page().unwrap();
            page.slice(4000, 1).unwrap().copy_from(&[(round + entry as u32) as u8]);
            sender.add(page, receiver.gref(entry));
        }
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
        for entry in 0..8 {
            let page = receiver.take(entry).unwrap().expect("it was sent");
            assert_eq!(byte(&page), (round + entry as u32) as u8);
        }
        receiver.renew(|_, _| {}).unwrap();
        assert!(!receiver.is_short());
    }
}

#[test]
fn page_that_is_not_accepted_returns_to_the_pool() {
    let (_sandbox, mut sender, mut receiver) = setup(2);
    let gref = receiver.gref(0);
    assert_eq!(sender.refill(2, 64).unwrap(), 2);
    for _ in 0..2 {
        let page = sender.page().unwrap();
        sender.add(page, gref);
    }
    assert_eq!(sender.refill(1, 64).unwrap(), 0);
    let mut statuses = Vec::new();
    sender.flush(|_, status| statuses.push(status)).unwrap();
    assert!(statuses[0].is_okay() && !statuses[1].is_okay());
    assert_eq!(sender.available(), 1);
    assert!(receiver.take(0).unwrap().is_some());
    assert!(receiver.take(1).unwrap().is_none());
}

#[test]
fn receiver_gives_up_pages_only_once_received_ones_are_dropped() {
    let (_sandbox, mut sender, mut receiver) = setup(4);
    let mut held = Vec::new();
    while !receiver.is_short() {
        assert!(sender.refill(1, 4).unwrap() > 0, "a page for every entry");
        let page = sender.page().unwrap();
        sender.add(page, receiver.gref(0));
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
        held.push(receiver.take(0).unwrap().unwrap());
        receiver.renew(|_, _| {}).unwrap();
    }
    assert!(held.len() > 40, "only {} pages", held.len());
    held.clear();
    receiver.renew(|entry, _| assert_eq!(entry, 0)).unwrap();
    assert!(!receiver.is_short() && sender.refill(1, 4).unwrap() > 0);
}

#[test]
fn pages_given_to_a_sender_that_is_gone_serve_the_next() {
    let sandbox = Sandbox::new().unwrap();
    let guest = sandbox.join_with(GUEST, Options { arena_pages: 64 }).unwrap();
    let dom0 = sandbox.join(DomId::DOM0).unwrap();
    // More than the guest's pages in all.
    for _ in 0..40 {
        let _receiver = Receiver::new(guest.clone(), DomId::DOM0, 8).unwrap();
        let mut sender = Sender::new(dom0.clone(), GUEST);
        assert_eq!(sender.refill(8, 8).unwrap(), 8);
    }
}

#[test]
fn pages_of_a_donor_that_exits_return_to_the_guest() {
    let sandbox = Sandbox::new().unwrap();
    let guest = sandbox.join_with(GUEST, Options { arena_pages: 64 }).unwrap();
    let mut receiver = Receiver::new(guest, DomId::DOM0, 8).unwrap();
    for _ in 0..40 {
        let mut sender = Sender::new(sandbox.join(DomId::DOM0).unwrap(), GUEST);
        assert_eq!(sender.refill(8, 8).unwrap(), 8);
        // One is sent, and not taken before the donor exits with the others.
        let page = sender.page().unwrap();
        sender.add(page, receiver.gref(0));
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
        drop(sender);
        let death = sandbox.control().await_death(DomId::DOM0).unwrap();
        assert!(death.wait(Duration::from_secs(60)).unwrap());
        assert!(receiver.take(0).unwrap().is_some());
        receiver.renew(|entry, _| assert_eq!(entry, 0)).unwrap();
        assert!(!receiver.is_short());
    }
}
