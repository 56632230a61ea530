//! A backend that is killed between any two of its steps while it answers in order, and its successor: every request
//! is answered exactly once, and what belongs together comes together.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::netif::{Rx, RxFlags, RxRequest, RxResponse, RxSlot};
use ring_abi::ring::response_log::{LogMismatch, ResponseLog, ResumeError};
use ring_abi::ring::{Back, Front};
use ring_abi::testing::Pages;
use std::collections::VecDeque;

type RxResponseLog = ResponseLog<Rx, Pages>;

/// A backend that answers in packets of a few slots, as a vif's receive ring does.
struct Server {
    ring: Back<Rx, Pages>,
    response_log: RxResponseLog,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Post,
    /// Answers a packet of so many slots.
    Answer(u32),
    Commit,
    /// Killed: before anything, or while it wrote so many of a packet's responses into ring and response log.
    Kill {
        noted: u32,
        sealed: bool,
        written: u32,
    },
    Hear,
}

impl Server {
    fn start(ring: Pages, kept: Pages) -> Server {
        let ring = Back::attach(ring).unwrap();
        let response_log = ResponseLog::start(kept, &ring).unwrap();
        Server { ring, response_log }
    }

    fn succeed(ring: Pages, kept: Pages) -> Server {
        let mut ring = Back::attach(ring).unwrap();
        let response_log: RxResponseLog = ResponseLog::resume(kept, &mut ring).unwrap();
        Server { ring, response_log }
    }

    fn packet(&mut self, slots: u32) -> Vec<RxSlot> {
        self.ring.refresh().unwrap();
        if self.ring.seen() < slots {
            return Vec::new();
        }
        let requests: Vec<RxRequest> = (0..slots).map(|_| self.ring.pop().unwrap().unwrap()).collect();
        let last = requests.len() - 1;
        let response = |(at, request): (usize, &RxRequest)| {
            assert_eq!(request.gref, GrantRef(u32::from(request.id) + 1000), "as it was posted");
            let flags = if at < last { RxFlags::MORE_DATA } else { RxFlags::empty() };
            RxResponse { id: request.id, offset: 0, flags, status: 1 }.into()
        };
        requests.iter().enumerate().map(response).collect()
    }

    fn answer(&mut self, slots: u32) {
        let packet = self.packet(slots);
        self.response_log.push(&mut self.ring, packet.iter().copied());
    }

    /// What `ResponseLog::push` does, up to some point of it.
    fn die_answering(mut self, kept: &Pages, noted: u32, sealed: bool, written: u32) {
        let packet = self.packet(3);
        let first = self.ring.produced();
        for (at, slot) in packet.iter().enumerate().take(if sealed { 3 } else { noted as usize }) {
            let place = 64 + ((first as usize + at) & 255) * 8;
            kept.words().store32(place, slot.0[0]);
            kept.words().store32(place + 4, slot.0[1]);
        }
        if sealed {
            kept.words().store32(12, first.wrapping_add(packet.len() as u32));
            packet.iter().take(written as usize).for_each(|slot| self.ring.push(slot));
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let kill = (0..4u32, any::<bool>(), 0..4u32);
    prop_oneof![
        8 => Just(Step::Post),
        4 => (1..19u32).prop_map(Step::Answer),
        2 => Just(Step::Commit),
        2 => kill.prop_map(|(noted, sealed, written)| Step::Kill { noted, sealed, written }),
        2 => Just(Step::Hear),
    ]
}

/// Takes responses: each in its request's place, whole packets only.
fn hear(front: &mut Front<Rx, Pages>, posted: &mut VecDeque<u16>) {
    let mut more = false;
    while let Some(slot) = front.pop().unwrap() {
        let response = slot.response();
        assert_eq!(Some(response.id), posted.pop_front(), "in order, and once");
        more = response.flags.contains(RxFlags::MORE_DATA);
    }
    assert!(!more, "half a packet was published");
}

proptest! {
    #[test]
    fn whoever_is_killed_whenever_every_request_is_answered_once_and_in_order(
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let (page, kept) = (Pages::new(1), Pages::new(RxResponseLog::bytes(256) / 4096));
        let mut front: Front<Rx, Pages> = Front::init(page.clone()).unwrap();
        let mut server = Server::start(page.clone(), kept.clone());
        let (mut id, mut posted) = (0u16, VecDeque::new());
        for step in steps {
            match step {
                Step::Post => {
                    for _ in 0..5 {
                        if front.push(&RxRequest { id, gref: GrantRef(u32::from(id) + 1000) }) {
                            posted.push_back(id);
                            id = id.wrapping_add(1);
                        }
                    }
                    let _ = front.commit();
                }
                Step::Answer(slots) => server.answer(slots),
                Step::Commit => drop(server.ring.commit()),
                Step::Kill { noted, sealed, written } => {
                    server.die_answering(&kept, noted, sealed, written);
                    server = Server::succeed(page.clone(), kept.clone());
                }
                Step::Hear => hear(&mut front, &mut posted),
            }
        }
        server = Server::succeed(page.clone(), kept.clone());
        for _ in 0..256 {
            server.answer(1);
            let _ = server.ring.commit();
            hear(&mut front, &mut posted);
        }
        prop_assert!(posted.is_empty(), "never answered: {posted:?}");
    }
}

#[test]
fn another_rings_journal_is_refused() {
    let (page, kept) = (Pages::new(1), Pages::new(1));
    let front: Front<Rx, Pages> = Front::init(page.clone()).unwrap();
    let mut ring: Back<Rx, Pages> = Back::attach(page).unwrap();
    let resume = |ring: &mut _| RxResponseLog::resume(kept.clone(), ring).unwrap_err();
    assert!(matches!(resume(&mut ring), ResumeError::LogMismatch(LogMismatch { what: "magic", .. })));
    RxResponseLog::start(kept.clone(), &ring).unwrap();
    kept.words().store32(12, 257);
    assert!(matches!(resume(&mut ring), ResumeError::Ring(_)), "more than the ring has");
    drop(front);
}
