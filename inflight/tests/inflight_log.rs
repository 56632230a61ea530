//! A backend that is killed between any two of its steps, and its successor: the frontend gets exactly one response to
//! each request.

use inflight::InflightLog;
use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::blkif::{Io, OP_READ, Request, Response, Segment, Status, X86_32, X86_64};
use ring_abi::netif;
use ring_abi::ring::{Back, Front, Protocol};
use ring_abi::testing::Pages;
use std::collections::BTreeSet;

/// A backend with an in-flight log, as blkback's queue has one.
struct Server {
    ring: Back<X86_64, Pages>,
    inflight_log: InflightLog<X86_64, Pages>,
    free: Vec<u32>,
    /// Entry and id of each request in flight.
    in_flight: Vec<(u32, u64)>,
    unpublished: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    Take,
    /// Answers the nth request in flight.
    Answer(usize),
    Commit,
    /// Kills the backend; with `true` after an answer was recorded and before its response was pushed.
    Kill(bool),
    Receive,
}

impl Server {
    fn start(ring: Pages, log: Pages) -> Server {
        let ring = Back::attach(ring).unwrap();
        let inflight_log = InflightLog::start(log, ring.size(), ring.consumed()).unwrap();
        let free = (0..ring.size()).collect();
        Server { ring, inflight_log, free, in_flight: Vec::new(), unpublished: Vec::new() }
    }

    fn resume(ring: Pages, log: Pages) -> Server {
        let mut ring: Back<X86_64, Pages> = Back::attach(ring).unwrap();
        let mut inflight_log = InflightLog::open(log, ring.size()).unwrap();
        ring.resume_at(inflight_log.taken()).unwrap();
        let mut free = Vec::new();
        let mut in_flight = Vec::new();
        for entry in 0..ring.size() {
            match inflight_log.unanswered(entry, ring.produced()) {
                Some((_, request)) => {
                    let request: Request = request;
                    assert_eq!(request, request_of(request.id()), "as it was sent");
                    in_flight.push((entry, request.id()));
                }
                None => free.push(entry),
            }
        }
        assert_eq!(in_flight.len() as u32, ring.unanswered(), "log and ring agree");
        Server { ring, inflight_log, free, in_flight, unpublished: Vec::new() }
    }

    fn take(&mut self) {
        if self.free.is_empty() {
            return;
        }
        if let Some(request) = self.ring.pop().unwrap() {
            let entry = self.free.pop().unwrap();
            self.inflight_log.take(entry, self.ring.consumed().wrapping_sub(1), &request);
            self.in_flight.push((entry, request.id()));
        }
    }

    fn answer(&mut self, which: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let (entry, id) = self.in_flight.swap_remove(which % self.in_flight.len());
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

/// Makes the request with this id; its fields depend on the id.
fn request_of(id: u64) -> Request {
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
        4 => Just(Step::Send),
        4 => Just(Step::Take),
        4 => any::<usize>().prop_map(Step::Answer),
        2 => Just(Step::Commit),
        1 => any::<bool>().prop_map(Step::Kill),
        2 => Just(Step::Receive),
    ]
}

proptest! {
    #[test]
    fn backend_killed_at_any_moment_answers_each_request_once(steps in prop::collection::vec(step(), 0..400), first: u32) {
        let page = Pages::new(1);
        let log = Pages::new(InflightLog::<X86_64, Pages>::bytes(32) / 4096);
        let mut front: Front<X86_64, Pages> = Front::init(page.clone()).unwrap();
        let mut server = Server::start(page.clone(), log.clone());
        // Ids do not depend on the slot.
        let mut id = u64::from(first);
        let mut waiting = BTreeSet::new();
        let receive = |front: &mut Front<X86_64, Pages>, waiting: &mut BTreeSet<u64>| {
            while let Some(response) = front.pop().unwrap() {
                assert!(waiting.remove(&response.id), "{} was answered twice or never sent", response.id);
            }
        };
        for step in steps {
            match step {
                Step::Send => {
                    id = id.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if front.push(&request_of(id)) {
                        waiting.insert(id);
                    }
                    let _ = front.commit();
                }
                Step::Take => server.take(),
                Step::Answer(which) => server.answer(which),
                Step::Commit => server.commit(),
                Step::Kill(is_answering) => {
                    if let (true, Some((entry, _))) = (is_answering, server.in_flight.first()) {
                        server.inflight_log.answer(*entry, server.ring.produced());
                    }
                    server = Server::resume(page.clone(), log.clone());
                }
                Step::Receive => receive(&mut front, &mut waiting),
            }
        }
        server = Server::resume(page.clone(), log.clone());
        for _ in 0..64 {
            server.take();
            server.answer(0);
            server.commit();
            receive(&mut front, &mut waiting);
        }
        prop_assert!(waiting.is_empty(), "not answered: {waiting:?}");
    }
}

#[test]
fn request_taken_before_the_index_was_written_is_taken_again() {
    let log = Pages::new(2);
    let mut inflight_log: InflightLog<X86_64, Pages> = InflightLog::start(log.clone(), 32, u32::MAX).unwrap();
    inflight_log.take(3, u32::MAX, &request_of(7));
    assert_eq!(inflight_log.taken(), 0);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), Some((u32::MAX, request_of(7))));
    // Killed before the index was written.
    log.words().store32(12, u32::MAX);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), None);
    assert_eq!(inflight_log.unanswered(3, u32::MAX), None);
}

#[test]
fn open_of_another_rings_log_is_refused() {
    let mismatch =
        |log: &Pages, entries| InflightLog::<X86_64, Pages>::open(log.clone(), entries).unwrap_err();
    let log = Pages::new(2);
    assert_eq!(mismatch(&log, 32).what, "magic");
    InflightLog::<X86_64, Pages>::start(log.clone(), 32, 0).unwrap();
    assert_eq!(mismatch(&log, 16).what, "entries");
    assert_eq!(mismatch(&log, 512).what, "bytes");
    let other = InflightLog::<X86_32, Pages>::open(log, 32).unwrap_err();
    assert_eq!((other.what, other.found, other.expected), ("bytes of a slot", 112, 108));
}

/// Words of the head: version, and bytes of an entry.
const VERSION: usize = 16;
const ENTRY_BYTES: usize = 20;

#[test]
fn log_of_another_version_is_refused_and_one_without_a_version_is_resumed() {
    let written = || {
        let log = Pages::new(2);
        let mut inflight_log: InflightLog<X86_64, Pages> = InflightLog::start(log.clone(), 32, 6).unwrap();
        inflight_log.take(3, 6, &request_of(7));
        log
    };
    let open = |log: &Pages| InflightLog::<X86_64, Pages>::open(log.clone(), 32);
    // What is written, and what a program from before versions has written, which left these words zero.
    for [version, entry_bytes] in [[1, 128], [0, 0]] {
        let log = written();
        if version == 0 {
            log.words().store32(VERSION, 0);
            log.words().store32(ENTRY_BYTES, 0);
        }
        let words = [VERSION, ENTRY_BYTES].map(|word| log.words().load32(word));
        assert_eq!(words, [version, entry_bytes]);
        let mut resumed = open(&log).unwrap();
        assert_eq!((resumed.taken(), resumed.unanswered(3, 0)), (7, Some((6, request_of(7)))));
    }
    for (word, found, what, expected) in [
        (VERSION, 2, "version", 1),
        (VERSION, u32::MAX, "version", 1),
        (ENTRY_BYTES, 136, "bytes of an entry", 128),
        (ENTRY_BYTES, 0, "bytes of an entry", 128),
    ] {
        let log = written();
        log.words().store32(word, found);
        let refused = open(&log).unwrap_err();
        assert_eq!((refused.what, refused.found, refused.expected), (what, found, expected));
    }
}

#[test]
fn network_request_in_the_log_is_unchanged() {
    let page = Pages::new(1);
    let request = netif::Tx::read_request(filled(&page));
    let log = Pages::new(InflightLog::<netif::Tx, Pages>::bytes(256) / 4096);
    let mut inflight_log: InflightLog<netif::Tx, Pages> = InflightLog::start(log, 256, 0).unwrap();
    inflight_log.take(255, 0, &request);
    assert_eq!(format!("{:?}", inflight_log.unanswered(255, 0)), format!("{:?}", Some((0, request))));
}

/// A slot that holds a transmit request.
fn filled(page: &Pages) -> ring_abi::shm::Slot<'_> {
    page.words().store_bytes(0, &[1, 0, 0, 0, 2, 0, 8, 0, 3, 0, 4, 0]);
    page.words()
}
