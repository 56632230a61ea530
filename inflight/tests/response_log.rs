//! A backend that answers in order and is killed between any two of its steps, and its successor: each request is
//! answered exactly once, and a packet's responses are published together.

use inflight::{LogMismatch, ResponseLog, ResumeError};
use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::netif::{Rx, RxFlags, RxRequest, RxResponse, RxSlot};
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
    /// Answers a packet of this number of slots.
    Answer(u32),
    Commit,
    /// Kills the backend while it answers a packet: after `logged` of its responses were pushed into the log, or with
    /// `sealed` after all were, the log's index included, and `pushed` of them into the ring.
    Kill {
        logged: u32,
        sealed: bool,
        pushed: u32,
    },
    Receive,
}

impl Server {
    fn start(ring: Pages, log: Pages) -> Server {
        let ring = Back::attach(ring).unwrap();
        let response_log = ResponseLog::start(log, &ring).unwrap();
        Server { ring, response_log }
    }

    fn resume(ring: Pages, log: Pages) -> Server {
        let mut ring = Back::attach(ring).unwrap();
        let response_log: RxResponseLog = ResponseLog::resume(log, &mut ring).unwrap();
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

    /// Does the first steps of `ResponseLog::push`, as a process that is killed in it.
    fn die_answering(mut self, log: &Pages, logged: u32, sealed: bool, pushed: u32) {
        let packet = self.packet(3);
        let first = self.ring.produced();
        for (at, slot) in packet.iter().enumerate().take(if sealed { 3 } else { logged as usize }) {
            let place = 64 + ((first as usize + at) & 255) * 8;
            log.words().store32(place, slot.0[0]);
            log.words().store32(place + 4, slot.0[1]);
        }
        if sealed {
            log.words().store32(12, first.wrapping_add(packet.len() as u32));
            packet.iter().take(pushed as usize).for_each(|slot| self.ring.push(slot));
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let kill = (0..4u32, any::<bool>(), 0..4u32);
    prop_oneof![
        8 => Just(Step::Post),
        4 => (1..19u32).prop_map(Step::Answer),
        2 => Just(Step::Commit),
        2 => kill.prop_map(|(logged, sealed, pushed)| Step::Kill { logged, sealed, pushed }),
        2 => Just(Step::Receive),
    ]
}

/// Takes responses: each is in its request's slot, and packets are complete.
fn receive(front: &mut Front<Rx, Pages>, posted: &mut VecDeque<u16>) {
    let mut more = false;
    while let Some(slot) = front.pop().unwrap() {
        let response = slot.response();
        assert_eq!(Some(response.id), posted.pop_front(), "in order, and once");
        more = response.flags.contains(RxFlags::MORE_DATA);
    }
    assert!(!more, "an incomplete packet was published");
}

proptest! {
    #[test]
    fn backend_killed_at_any_moment_answers_each_request_once_in_order(
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let page = Pages::new(1);
        let log = Pages::new(RxResponseLog::bytes(256) / 4096);
        let mut front: Front<Rx, Pages> = Front::init(page.clone()).unwrap();
        let mut server = Server::start(page.clone(), log.clone());
        let mut id = 0u16;
        let mut posted = VecDeque::new();
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
                Step::Kill { logged, sealed, pushed } => {
                    server.die_answering(&log, logged, sealed, pushed);
                    server = Server::resume(page.clone(), log.clone());
                }
                Step::Receive => receive(&mut front, &mut posted),
            }
        }
        server = Server::resume(page.clone(), log.clone());
        for _ in 0..256 {
            server.answer(1);
            let _ = server.ring.commit();
            receive(&mut front, &mut posted);
        }
        prop_assert!(posted.is_empty(), "not answered: {posted:?}");
    }
}

#[test]
fn resume_of_another_rings_log_is_refused() {
    let page = Pages::new(1);
    let log = Pages::new(1);
    let front: Front<Rx, Pages> = Front::init(page.clone()).unwrap();
    let mut ring: Back<Rx, Pages> = Back::attach(page).unwrap();
    let resume = |ring: &mut _| RxResponseLog::resume(log.clone(), ring).unwrap_err();
    assert!(matches!(resume(&mut ring), ResumeError::LogMismatch(LogMismatch { what: "magic", .. })));
    RxResponseLog::start(log.clone(), &ring).unwrap();
    log.words().store32(12, 257);
    assert!(matches!(resume(&mut ring), ResumeError::Ring(_)), "more than the ring has");
    drop(front);
}

#[test]
fn log_of_another_version_is_refused_and_one_without_a_version_is_resumed() {
    const VERSION: usize = 16;
    const ENTRY_BYTES: usize = 20;
    let page = Pages::new(1);
    let log = Pages::new(1);
    let _front: Front<Rx, Pages> = Front::init(page.clone()).unwrap();
    let mut ring: Back<Rx, Pages> = Back::attach(page).unwrap();
    RxResponseLog::start(log.clone(), &ring).unwrap();
    assert_eq!([VERSION, ENTRY_BYTES].map(|word| log.words().load32(word)), [1, 8]);
    for (version, entry_bytes, refused) in [
        (1, 8, None),
        (0, 0, None),
        (2, 8, Some(("version", 2, 1))),
        (1, 16, Some(("bytes of an entry", 16, 8))),
    ] {
        log.words().store32(VERSION, version);
        log.words().store32(ENTRY_BYTES, entry_bytes);
        let found = match RxResponseLog::resume(log.clone(), &mut ring) {
            Ok(_) => None,
            Err(ResumeError::LogMismatch(LogMismatch { what, found, expected, .. })) => {
                Some((what, found, expected))
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, refused, "version {version}");
    }
}
