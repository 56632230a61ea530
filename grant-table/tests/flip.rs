//! Page flipping on the local hypervisor.

use grant_table::OwnedPage;
use grant_table::flip::{Receiver, Sender};
use hypervisor::local::{Options, Sandbox};
use ring_abi::DomId;
use ring_abi::grant::Status;

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
            let page = sender.page().unwrap().expect("as many pages as entries");
            page.slice(4000, 1).unwrap().copy_from(&[(round + entry as u32) as u8]);
            sender.add(page, receiver.gref(entry));
        }
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
        for entry in 0..8 {
            let page = receiver.take(entry).unwrap().expect("it was sent");
            assert_eq!(byte(&page), (round + entry as u32) as u8);
        }
        assert_eq!(receiver.renew().unwrap(), 0);
    }
}

#[test]
fn page_that_is_not_accepted_returns_to_the_pool() {
    let (_sandbox, mut sender, mut receiver) = setup(2);
    let gref = receiver.gref(0);
    for _ in 0..2 {
        let page = sender.page().unwrap().unwrap();
        sender.add(page, gref);
    }
    assert!(sender.page().unwrap().is_none());
    let mut statuses = Vec::new();
    sender.flush(|_, status| statuses.push(status)).unwrap();
    assert!(statuses[0].is_okay() && !statuses[1].is_okay());
    assert!(sender.page().unwrap().is_some());
    assert!(receiver.take(0).unwrap().is_some());
    assert!(receiver.take(1).unwrap().is_none());
}

#[test]
fn receiver_gives_up_pages_only_once_received_ones_are_dropped() {
    let (_sandbox, mut sender, mut receiver) = setup(4);
    let mut held = Vec::new();
    loop {
        let Some(page) = sender.page().unwrap() else { break };
        sender.add(page, receiver.gref(0));
        sender.flush(|_, status| assert_eq!(status, Status::OKAY)).unwrap();
        held.push(receiver.take(0).unwrap().unwrap());
        receiver.renew().unwrap();
    }
    assert!(held.len() > 40, "only {} pages", held.len());
    assert!(receiver.renew().unwrap() > 0);
    held.clear();
    assert_eq!(receiver.renew().unwrap(), 0);
    assert!(sender.page().unwrap().is_some());
}
