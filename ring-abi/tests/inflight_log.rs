//! A backend that is killed between any two of its steps, and its successor: every request is answered exactly once,
//! as the frontend sees it.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::blkif::{Io, OP_READ, Request, Response, Segment, Status, X86_32, X86_64};
use ring_abi::netif;
use ring_abi::ring::inflight_log::InflightLog;
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::testing::Pages;

/// A backend with an in-flight log, as blkback's queue has one.
struct Server {
    ring: Back<X86_64, Pages>,
    inflight_log: InflightLog<X86_64, Pages>,
    free: Vec<u32>,
    /// Entry and id of what is in flight.
    jobs: Vec<(u32, u64)>,
    unpublished: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask,
    Take,
    /// Answers the nth of what is in flight.
    Answer(usize),
    Commit,
    /// Killed, perhaps while it wrote an answer.
    Kill(bool),
    Hear,
}

impl Server {
    fn start(ring: Pages, kept: Pages) -> Server {
        let ring = Back::attach(ring).unwrap();
        let inflight_log = InflightLog::start(kept, ring.size(), ring.consumed()).unwrap();
        let free = (0..ring.size()).collect();
        Server { ring, inflight_log, free, jobs: Vec::new(), unpublished: Vec::new() }
    }

    fn succeed(ring: Pages, kept: Pages) -> Server {
        let mut ring: Back<X86_64, Pages> = Back::attach(ring).unwrap();
        let mut inflight_log = InflightLog::open(kept, ring.size()).unwrap();
        ring.rejoin(inflight_log.taken()).unwrap();
        let (mut free, mut jobs) = (Vec::new(), Vec::new());
        for entry in 0..ring.size() {
            match inflight_log.unanswered(entry, ring.produced()) {
                Some((_, request)) => {
                    let request: Request = request;
                    assert_eq!(request, asks(request.id()), "as it was asked");
                    jobs.push((entry, request.id()));
                }
                None => free.push(entry),
            }
        }
        assert_eq!(jobs.len() as u32, ring.unanswered(), "the inflight_log and the ring agree");
        Server { ring, inflight_log, free, jobs, unpublished: Vec::new() }
    }

    fn take(&mut self) {
        if self.free.is_empty() {
            return;
        }
        if let Some(request) = self.ring.pop().unwrap() {
            let entry = self.free.pop().unwrap();
            self.inflight_log.take(entry, self.ring.consumed().wrapping_sub(1), &request);
            self.jobs.push((entry, request.id()));
        }
    }

    fn answer(&mut self, which: usize) {
        if self.jobs.is_empty() {
            return;
        }
        let (entry, id) = self.jobs.swap_remove(which % self.jobs.len());
        self.inflight_log.answer(entry, self.ring.produced());
        self.ring.push(&Response { id, operation: 0, status: Status::OKAY });
        self.unpublished.push(entry);
    }

    fn commit(&mut self) {
        let _ = self.ring.commit();
        for entry in self.unpublished.drain(..) {
            self.inflight_log.end(entry);
            self.free.push(entry);
        }
    }
}

/// A request that its id tells.
fn asks(id: u64) -> Request {
    let segments =
        (0..id % 12).map(|n| Segment { gref: GrantRef((id >> n) as u32), first_sect: 0, last_sect: 7 });
    let nr_segments = (id % 12) as u8;
    Request::Io(Io {
        id,
        operation: OP_READ,
        sector_number: !id,
        nr_segments,
        handle: 9,
        segments: segments.collect(),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Ask),
        4 => Just(Step::Take),
        4 => any::<usize>().prop_map(Step::Answer),
        2 => Just(Step::Commit),
        1 => any::<bool>().prop_map(Step::Kill),
        2 => Just(Step::Hear),
    ]
}

proptest! {
    #[test]
    fn whoever_is_killed_whenever_every_request_is_answered_once(steps in prop::collection::vec(step(), 0..400), first: u32) {
        let (page, kept) = (Pages::new(1), Pages::new(InflightLog::<X86_64, Pages>::bytes(32) / 4096));
        let mut front: Front<X86_64, Pages> = Front::init(page.clone()).unwrap();
        let mut server = Server::start(page.clone(), kept.clone());
        // An id that tells nothing of its place.
        let (mut id, mut waiting) = (u64::from(first), std::collections::BTreeSet::new());
        let hear = |front: &mut Front<X86_64, Pages>, waiting: &mut std::collections::BTreeSet<u64>| {
            while let Some(response) = front.pop().unwrap() {
                assert!(waiting.remove(&response.id), "{} was answered twice or never asked", response.id);
            }
        };
        for step in steps {
            match step {
                Step::Ask => {
                    id = id.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if front.push(&asks(id)) {
                        waiting.insert(id);
                    }
                    let _ = front.commit();
                }
                Step::Take => server.take(),
                Step::Answer(which) => server.answer(which),
                Step::Commit => server.commit(),
                Step::Kill(answering) => {
                    if let (true, Some((entry, _))) = (answering, server.jobs.first()) {
                        server.inflight_log.answer(*entry, server.ring.produced());
                    }
                    server = Server::succeed(page.clone(), kept.clone());
                }
                Step::Hear => hear(&mut front, &mut waiting),
            }
        }
        server = Server::succeed(page.clone(), kept.clone());
        for _ in 0..64 {
            server.take();
            server.answer(0);
            server.commit();
            hear(&mut front, &mut waiting);
        }
        prop_assert!(waiting.is_empty(), "never answered: {waiting:?}");
    }
}

#[test]
fn a_request_taken_but_not_told_is_taken_again() {
    let kept = Pages::new(2);
    let mut inflight_log: InflightLog<X86_64, Pages> =
        InflightLog::start(kept.clone(), 32, u32::MAX).unwrap();
    inflight_log.take(3, u32::MAX, &asks(7));
    assert_eq!(inflight_log.taken(), 0);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), Some((u32::MAX, asks(7))));
    // Killed before the index was written.
    kept.words().store32(12, u32::MAX);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), None);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), None);
}

#[test]
fn what_is_no_ledger_of_this_ring_is_refused() {
    let unfit =
        |kept: &Pages, entries| InflightLog::<X86_64, Pages>::open(kept.clone(), entries).unwrap_err();
    let kept = Pages::new(2);
    assert_eq!(unfit(&kept, 32).what, "magic");
    InflightLog::<X86_64, Pages>::start(kept.clone(), 32, 0).unwrap();
    assert_eq!(unfit(&kept, 16).what, "entries");
    assert_eq!(unfit(&kept, 512).what, "bytes");
    let other = InflightLog::<X86_32, Pages>::open(kept, 32).unwrap_err();
    assert_eq!((other.what, other.found, other.expected), ("bytes of a slot", 112, 108));
}

#[test]
fn network_requests_are_kept_as_they_were() {
    let kept = Pages::new(2);
    let request = netif::Tx::read_request(filled(&kept));
    let kept = Pages::new(InflightLog::<netif::Tx, Pages>::bytes(256) / 4096);
    let mut inflight_log: InflightLog<netif::Tx, Pages> = InflightLog::start(kept, 256, 0).unwrap();
    inflight_log.take(255, 0, &request);
    assert_eq!(format!("{:?}", inflight_log.unanswered(255, 0)), format!("{:?}", Some((0, request))));
}

fn filled(kept: &Pages) -> ring_abi::shm::Slot<'_> {
    kept.words().store_bytes(0, &[1, 0, 0, 0, 2, 0, 8, 0, 3, 0, 4, 0]);
    kept.words()
}
