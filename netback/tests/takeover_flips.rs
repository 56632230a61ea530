//! A receive ring whose pages are flipped, killed at any moment and resumed from its response log by another process: every
//! request is answered exactly once and in order, and every page is the guest's again.

use grant_table::flip::{Receiver, Sender};
use hypervisor::local::{Options, Sandbox};
use netback::rx::{FrameInfo, PageFill, Placement, Rx};
use proptest::prelude::*;
use ring_abi::DomId;
use ring_abi::netif::{self, RxRequest};
use ring_abi::ring::Front;
use ring_abi::testing::Pages;
use std::collections::VecDeque;
use testkit::BOUND;

/// Where a backend that flips is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Killed {
    Placed,
    Transferred,
    Logged,
    Published,
    Never,
}

fn killed() -> impl Strategy<Value = Killed> {
    prop_oneof![
        Just(Killed::Placed),
        Just(Killed::Transferred),
        Just(Killed::Logged),
        Just(Killed::Published),
        Just(Killed::Never),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// A page that was transferred before the kill is in its entry, which accepts no other: the frame is lost, and neither a
    /// page nor a response.
    #[test]
    fn flips_killed_at_any_moment_answer_each_request_once_and_lose_no_page(
        rounds in prop::collection::vec((killed(), 1..5usize), 1..40),
    ) {
        const ENTRIES: usize = 32;
        let sandbox = Sandbox::new().unwrap();
        let guest = sandbox.join_with(DomId(1), Options { arena_pages: 128 }).unwrap();
        let mut receiver = Receiver::new(guest, DomId::DOM0, ENTRIES).unwrap();
        let ring = Pages::new(1);
        let mut front: Front<netif::Rx, Pages> = Front::init(ring.clone()).unwrap();
        let mut posted: VecDeque<u16> = (0..ENTRIES as u16).collect();
        for id in 0..ENTRIES as u16 {
            assert!(front.push(&RxRequest { id, gref: receiver.gref(id.into()) }));
        }
        let _ = front.commit();
        let mut rx: Rx<Pages, Pages> = Rx::attach(ring.clone()).unwrap();
        let log = Pages::for_bytes(rx.logged().log_bytes());
        rx.logged().record(log.clone()).unwrap();
        let mut sender = Sender::new(sandbox.join(DomId::DOM0).unwrap(), DomId(1));
        for (killed, pages) in rounds {
            flip_frame(&mut rx, &mut sender, pages, killed);
            if killed != Killed::Never {
                drop(sender);
                prop_assert!(sandbox.control().await_death(DomId::DOM0).unwrap().wait(BOUND).unwrap());
                sender = Sender::new(sandbox.join(DomId::DOM0).unwrap(), DomId(1));
                rx = Rx::attach(ring.clone()).unwrap();
                rx.logged().resume(log.clone()).unwrap();
            }
            while let Some(slot) = front.pop().unwrap() {
                let response = slot.response();
                prop_assert_eq!(Some(response.id), posted.pop_front());
                let page = receiver.take(response.id.into()).unwrap();
                prop_assert!(page.is_some() || response.status < 0, "a frame without its page");
                if page.is_none() {
                    let gref = receiver.gref(response.id.into());
                    assert!(front.push(&RxRequest { id: response.id, gref }));
                    posted.push_back(response.id);
                }
            }
            let renewed = receiver.renew(|entry, gref| {
                assert!(front.push(&RxRequest { id: entry as u16, gref }));
                posted.push_back(entry as u16);
            });
            renewed.unwrap();
            let _ = front.commit();
            prop_assert!(!receiver.is_short(), "pages of a killed backend are lost");
            prop_assert_eq!(posted.len(), ENTRIES);
        }
    }
}

/// Flips a frame of so many pages, and stops where the backend is killed.
fn flip_frame(rx: &mut Rx<Pages, Pages>, sender: &mut Sender, pages: usize, killed: Killed) {
    let mut fills: Vec<PageFill> = Vec::new();
    let info = FrameInfo { len: 4096 * pages, ..FrameInfo::default() };
    let Placement::Frame(frame) = rx.place(info, &mut fills).unwrap() else { panic!("requests are posted") };
    assert!(sender.refill(pages, pages).unwrap() >= pages, "a page for every request");
    for fill in &fills {
        let page = sender.page().unwrap();
        sender.add(page, fill.gref);
    }
    if killed == Killed::Placed {
        return;
    }
    let mut refused = false;
    sender.flush(|_, status| refused |= !status.is_okay()).unwrap();
    if killed == Killed::Transferred {
        return;
    }
    if refused {
        rx.fail(frame);
    }
    rx.finish();
    if killed != Killed::Logged {
        let _ = rx.commit();
    }
}
