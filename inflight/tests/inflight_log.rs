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
        let mut inflight_log: InflightLog<X86_64, Pages> = InflightLog::open(log, ring.size()).unwrap();
        ring.resume_at(inflight_log.taken()).unwrap();
        let mut in_flight = Vec::new();
        for (entry, _, request) in inflight_log.unanswered(ring.produced()).unwrap() {
            assert_eq!(request, request_of(request.id()), "as it was sent");
            in_flight.push((entry, request.id()));
        }
        let free =
            (0..ring.size()).filter(|entry| in_flight.iter().all(|(taken, _)| taken != entry)).collect();
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
    assert_eq!(inflight_log.unanswered(u32::MAX).unwrap(), [(3, u32::MAX, request_of(7))]);
    // Killed before the index was written.
    log.words().store32(12, u32::MAX);
    assert_eq!(inflight_log.unanswered(u32::MAX).unwrap(), []);
    assert_eq!(inflight_log.unanswered(u32::MAX).unwrap(), []);
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

/// Words of an entry.
const STATE: usize = 0;
const INDEX: usize = 4;
const CHECKSUM: usize = 12;
/// The first word of its request.
const REQUEST: usize = 16;

/// The offset of a word of an entry of 128 bytes.
fn entry_word(entry: usize, word: usize) -> usize {
    64 + entry * 128 + word
}

#[test]
fn log_of_another_version_is_refused_and_one_without_a_version_is_resumed() {
    let written = || {
        let log = Pages::new(2);
        let mut inflight_log: InflightLog<X86_64, Pages> = InflightLog::start(log.clone(), 32, 6).unwrap();
        inflight_log.take(3, 6, &request_of(7));
        log
    };
    let open = |log: &Pages| InflightLog::<X86_64, Pages>::open(log.clone(), 32);
    // What is written, what version 1 was, and what a program from before versions has written, which left these words zero.
    for [version, entry_bytes] in [[2, 128], [1, 128], [0, 0]] {
        let log = written();
        if version < 2 {
            log.words().store32(VERSION, version);
            log.words().store32(ENTRY_BYTES, entry_bytes);
            log.words().store32(entry_word(3, CHECKSUM), 0);
        }
        let words = [VERSION, ENTRY_BYTES].map(|word| log.words().load32(word));
        assert_eq!(words, [version, entry_bytes]);
        for _ in 0..2 {
            let mut resumed = open(&log).unwrap();
            assert_eq!((resumed.taken(), resumed.unanswered(0).unwrap()), (7, vec![(3, 6, request_of(7))]));
        }
        assert_eq!([VERSION, ENTRY_BYTES].map(|word| log.words().load32(word)), [2, 128]);
    }
    for (word, found, what, expected) in [
        (VERSION, 3, "version", 2),
        (VERSION, u32::MAX, "version", 2),
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
fn damaged_entry_is_named_and_the_log_stays_as_it_was() {
    // Two requests in flight; one of their words is overwritten.
    let cases = [
        (STATE, 3, "state"),
        (STATE, u32::MAX, "state"),
        (INDEX, 6, "checksum"),
        (INDEX, 8, "checksum"),
        (INDEX, 10, "index of its request"),
        (CHECKSUM, 0, "checksum"),
        (REQUEST, 1, "checksum"),
        (REQUEST + 108, 1, "checksum"),
    ];
    for (word, found, what) in cases {
        let log = Pages::new(2);
        let mut inflight_log: InflightLog<X86_64, Pages> = InflightLog::start(log.clone(), 32, 6).unwrap();
        for (entry, index) in [(0, 6), (3, 7), (5, 8)] {
            inflight_log.take(entry, index, &request_of(7));
        }
        let good = log.words().load32(entry_word(3, word));
        log.words().store32(entry_word(3, word), found);
        let damaged = inflight_log.unanswered(6).unwrap_err();
        assert_eq!((damaged.entry, damaged.what), (3, what), "{damaged}");
        log.words().store32(entry_word(3, word), good);
        assert_eq!(inflight_log.unanswered(6).unwrap().len(), 3);
    }
}

#[test]
fn index_that_two_entries_have_is_damage() {
    let mut log: InflightLog<X86_64, Pages> = InflightLog::start(Pages::new(2), 32, 6).unwrap();
    for (entry, index) in [(0, 6), (3, 7), (5, 7)] {
        log.take(entry, index, &request_of(7));
    }
    let damaged = log.unanswered(6).unwrap_err();
    assert_eq!((damaged.what, damaged.found), ("index of its request", 7));
}

#[test]
fn slow_request_is_found_however_many_were_answered_since() {
    let mut log: InflightLog<X86_64, Pages> = InflightLog::start(Pages::new(2), 32, 0).unwrap();
    log.take(9, 0, &request_of(7));
    for index in 1..1000 {
        log.take(3, index, &request_of(8));
        log.answer(3, index - 1);
        log.end(3);
    }
    assert_eq!(log.unanswered(999).unwrap(), [(9, 0, request_of(7))]);
}

#[test]
fn network_request_in_the_log_is_unchanged() {
    let page = Pages::new(1);
    let request = netif::Tx::read_request(filled(&page));
    let log = Pages::new(InflightLog::<netif::Tx, Pages>::bytes(256) / 4096);
    let mut inflight_log: InflightLog<netif::Tx, Pages> = InflightLog::start(log, 256, 0).unwrap();
    inflight_log.take(255, 0, &request);
    assert_eq!(format!("{:?}", inflight_log.unanswered(0).unwrap()), format!("{:?}", [(255, 0, request)]));
}

/// A slot that holds a transmit request.
fn filled(page: &Pages) -> ring_abi::shm::Slot<'_> {
    page.words().store_bytes(0, &[1, 0, 0, 0, 2, 0, 8, 0, 3, 0, 4, 0]);
    page.words()
}
