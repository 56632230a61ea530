//! Every request is answered exactly once, whatever it is and in whatever order operations complete.

use super::*;
use crate::harness::hostile;
use crate::request::Operation;
use arrayvec::ArrayVec;
use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::blkif::{Discard, Indirect, Io, Segment, X86_32, X86_64};
use ring_abi::ring::Front;
use ring_abi::testing::Pages;
use std::collections::BTreeMap;

const LIMITS: Limits = Limits {
    sectors: 1 << 20,
    sector_size: 512,
    read_only: false,
    flush: true,
    discard: true,
    indirect_segments: 600,
};

fn io(operation: u8, id: u64, sector_number: u64, segments: &[(u8, u8)]) -> Request {
    let segments: ArrayVec<_, 11> = segments
        .iter()
        .map(|&(first_sect, last_sect)| Segment { gref: GrantRef(9), first_sect, last_sect })
        .collect();
    Request::Io(Io { operation, handle: 0, id, sector_number, nr_segments: segments.len() as u8, segments })
}

fn any_request() -> impl Strategy<Value = Request> {
    // Few distinct ids, so that many repeat.
    let id = 0..5u64;
    let segments = prop::collection::vec((0..8u8, 0..9u8), 0..=11);
    prop_oneof![
        8 => (0..4u8, id.clone(), 0..(1u64 << 21), segments).prop_map(|(op, id, s, g)| io(op, id, s, &g)),
        1 => (any::<u8>(), id.clone(), any::<[u64; 2]>())
            .prop_map(|(flag, id, [sector_number, nr_sectors])| {
                Request::Discard(Discard { flag, handle: 0, id, sector_number, nr_sectors })
            }),
        2 => (0..8u8, id.clone(), 0..700u16).prop_map(|(indirect_op, id, nr_segments)| {
            let indirect_grefs = [GrantRef(1); 8];
            Request::Indirect(Indirect { indirect_op, nr_segments, id, sector_number: 0, handle: 0, indirect_grefs })
        }),
        1 => (7..255u8, id).prop_map(|(operation, id)| Request::Unknown { operation, id }),
    ]
}

/// Takes the next requests that may be carried out; those whose segments are to be fetched find them as `pick` says: whole pages, bad
/// ones, or none.
fn take<P>(back: &mut Queue<P, Pages>, pick: usize) -> Vec<Tag>
where
    P: Protocol<Request = Request, Response = Response>,
{
    let mut ready: Vec<_> = back.poll().unwrap().into_iter().collect();
    let mut unfetched = Vec::new();
    back.take_unfetched(&mut unfetched);
    for tag in unfetched {
        let Request::Indirect(request) = *back.requests()[tag].request() else { panic!("{tag:?}") };
        let sectors = if pick.is_multiple_of(5) { (7, 2) } else { (0, 7) };
        let segment = Segment { gref: GrantRef(9), first_sect: sectors.0, last_sect: sectors.1 };
        let mut bytes = vec![0; 8 * usize::from(request.nr_segments)];
        indirect::write_segments(&mut bytes, &vec![segment; request.nr_segments.into()]);
        if pick.is_multiple_of(7) {
            back.complete(tag, Status::ERROR);
        } else if back.fetched(tag, &bytes) {
            assert_eq!(back.requests()[tag].bytes(), 4096 * usize::from(request.nr_segments));
            ready.push(tag);
        }
    }
    ready
}

/// Sends all requests, completes them in the order that `picks` selects, and returns the responses.
fn exchange<P>(requests: &[Request], picks: &[usize]) -> Vec<Response>
where
    P: Protocol<Request = Request, Response = Response>,
{
    let memory = Pages::new(1);
    let mut front: Front<P, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<P, Pages> = Queue::attach(memory, LIMITS).unwrap();
    let mut unsent = requests.iter();
    let mut open = Vec::new();
    let mut responses = Vec::new();
    let mut next = unsent.next();
    let mut picks = picks.iter().copied().cycle();
    while responses.len() < requests.len() {
        while next.is_some_and(|request| front.push(request)) {
            next = unsent.next();
        }
        let _ = front.commit();
        loop {
            let pick = picks.next().unwrap_or(0);
            let ready = take(&mut back, pick);
            if ready.is_empty() {
                break;
            }
            open.extend(ready);
            if picks.next().unwrap_or(0) % 3 == 0 {
                break;
            }
        }
        if !open.is_empty() {
            let tag = open.swap_remove(picks.next().unwrap_or(0) % open.len());
            back.complete(tag, Status::OKAY);
        }
        let _ = back.commit();
        while let Some(response) = front.pop().unwrap() {
            responses.push(response);
        }
    }
    assert_eq!((back.in_flight(), front.in_flight()), (0, 0));
    responses
}

fn counted<T>(all: impl IntoIterator<Item = (u64, u8)>, make: impl Fn((u64, u8)) -> T) -> BTreeMap<T, usize>
where
    T: Ord,
{
    all.into_iter().fold(BTreeMap::new(), |mut counts, one| {
        *counts.entry(make(one)).or_default() += 1;
        counts
    })
}

proptest! {
    #[test]
    fn any_requests_are_answered_once_each_with_their_ids(
        requests in prop::collection::vec(any_request(), 1..150),
        picks in prop::collection::vec(any::<usize>(), 1..50),
    ) {
        let sent = counted(requests.iter().map(|r| (r.id(), r.operation())), |x| x);
        for responses in [exchange::<X86_64>(&requests, &picks), exchange::<X86_32>(&requests, &picks)] {
            prop_assert_eq!(&sent, &counted(responses.iter().map(|a| (a.id, a.operation)), |x| x));
        }
    }

    #[test]
    fn hostile_frontend_causes_no_panic_and_no_invalid_operation(script in prop::collection::vec(any::<u8>(), 0..4000)) {
        hostile(&script);
    }
}

#[test]
fn barrier_completes_after_earlier_and_before_later_requests() {
    let memory = Pages::new(1);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<X86_64, Pages> = Queue::attach(memory, LIMITS).unwrap();
    for request in [io(1, 1, 0, &[(0, 7)]), io(2, 2, 8, &[(0, 7)]), io(1, 3, 16, &[(0, 7)])] {
        assert!(front.push(&request));
    }
    let _ = front.commit();
    let before = back.poll().unwrap().unwrap();
    let asked = |back: &Queue<X86_64, Pages>, tag| {
        let request = &back.requests()[tag];
        (request.operation(), request.sector(), request.bytes())
    };
    assert_eq!(asked(&back, before), (Operation::Write, 0, 4096));
    assert_eq!(back.poll(), Ok(None));
    assert_eq!(back.arm(), Ok(false));
    back.complete(before, Status::OKAY);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let step = back.poll().unwrap().unwrap();
        seen.push(asked(&back, step));
        if seen.len() < 4 {
            assert_eq!(back.poll(), Ok(None), "while {seen:?}");
        }
        back.complete(step, Status::OKAY);
    }
    assert_eq!(
        seen,
        [
            (Operation::Flush, 0, 0),
            (Operation::Write, 8, 4096),
            (Operation::Flush, 0, 0),
            (Operation::Write, 16, 4096),
        ]
    );
    let _ = back.commit();
    let ids: Vec<_> = std::iter::from_fn(|| front.pop().unwrap()).map(|r| r.id).collect();
    assert_eq!(ids, [1, 2, 3]);
}

fn indirect(id: u64, nr_segments: u16) -> Request {
    Request::Indirect(Indirect {
        indirect_op: 0,
        nr_segments,
        id,
        sector_number: 8,
        handle: 0,
        indirect_grefs: [GrantRef(1); 8],
    })
}

#[test]
fn indirect_requests_are_put_aside_eight_at_a_time_and_memory_is_given_back() {
    let memory = Pages::new(1);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<X86_64, Pages> = Queue::attach(memory, LIMITS).unwrap();
    (0..9).for_each(|id| assert!(front.push(&indirect(id, 2))));
    assert!(front.push(&io(0, 9, 0, &[(0, 7)])));
    let _ = front.commit();
    assert_eq!(back.poll(), Ok(None));
    let mut unfetched = Vec::new();
    back.take_unfetched(&mut unfetched);
    assert_eq!((unfetched.len(), back.in_flight()), (8, 8));
    let direct = back.poll().unwrap().unwrap();
    assert_eq!(back.requests()[direct].segments().len(), 1);
    back.take_unfetched(&mut unfetched);
    let segment = Segment { gref: GrantRef(7), first_sect: 0, last_sect: 7 };
    let mut bytes = [0; 16];
    indirect::write_segments(&mut bytes, &[segment; 2]);
    assert!(!back.fetched(unfetched[0], &bytes[..8]), "a segment is missing");
    assert!(back.fetched(unfetched[1], &bytes));
    let pending = &back.requests()[unfetched[1]];
    assert_eq!((pending.segments(), pending.sector(), pending.bytes()), (&[segment; 2][..], 8, 8192));
    back.complete(unfetched[1], Status::OKAY);
    let _ = back.commit();
    // Echoed is the operation inside, as Linux's frontend demands.
    let responses: Vec<_> =
        std::iter::from_fn(|| front.pop().unwrap()).map(|r| (r.id, r.operation, r.status)).collect();
    assert_eq!(responses, [(0, 0, Status::ERROR), (1, 0, Status::OKAY)]);
    back.give_back_spare();
}

#[test]
fn barrier_waits_for_an_earlier_request_that_is_not_fetched() {
    let memory = Pages::new(1);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<X86_64, Pages> = Queue::attach(memory, LIMITS).unwrap();
    assert!(front.push(&indirect(0, 1)) && front.push(&io(2, 1, 0, &[])));
    let _ = front.commit();
    assert_eq!(back.poll(), Ok(None));
    assert_eq!(back.poll(), Ok(None), "the barrier waits");
    let mut unfetched = Vec::new();
    back.take_unfetched(&mut unfetched);
    let mut bytes = [0; 8];
    indirect::write_segments(&mut bytes, &[Segment { gref: GrantRef(7), first_sect: 0, last_sect: 7 }]);
    assert!(back.fetched(unfetched[0], &bytes));
    assert_eq!(back.poll(), Ok(None), "still");
    back.complete(unfetched[0], Status::OKAY);
    assert!(back.poll().unwrap().is_some());
}

#[test]
fn impossible_producer_index_is_a_fault() {
    for prod in [33, 100, u32::MAX, 1 << 31] {
        let memory = Pages::new(1);
        let mut back: Queue<X86_64, Pages> = Queue::attach(memory.clone(), LIMITS).unwrap();
        memory.words().store32(0, prod);
        assert!(back.poll().is_err(), "{prod}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Poll,
    Complete(usize),
    Commit,
    Kill,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Poll),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Commit),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #[test]
    fn resume_after_kill_answers_every_request_once(
        requests in prop::collection::vec(any_request(), 1..150),
        steps in prop::collection::vec(any_step(), 1..600),
    ) {
        let memory = Pages::new(1);
        let log_memory = Pages::new(InflightLog::<X86_64, Pages>::bytes(32) / 4096);
        let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
        let mut back: Queue<X86_64, Pages> = Queue::attach_recording(memory.clone(), LIMITS, log_memory.clone()).unwrap();
        let mut unsent = requests.iter().peekable();
        let mut open = Vec::new();
        let mut responses = Vec::new();
        // After the script all remaining requests are completed in order.
        let rest = [Step::Poll, Step::Complete(0), Step::Commit];
        for step in steps.iter().chain(rest.iter().cycle().take(30 * requests.len())) {
            while unsent.peek().is_some_and(|request| front.push(request)) {
                unsent.next();
            }
            let _ = front.commit();
            match *step {
                Step::Poll => open.extend(take(&mut back, requests.len())),
                Step::Complete(_) if open.is_empty() => {}
                Step::Complete(which) => back.complete(open.swap_remove(which % open.len()), Status::OKAY),
                Step::Commit => drop(back.commit()),
                Step::Kill => {
                    open.clear();
                    back = Queue::resume(memory.clone(), LIMITS, log_memory.clone()).unwrap();
                }
            }
            while let Some(response) = front.pop().unwrap() {
                responses.push((response.id, response.operation));
            }
        }
        let mut sent: Vec<_> = requests.iter().map(|r| (r.id(), r.operation())).collect();
        sent.sort_unstable();
        responses.sort_unstable();
        prop_assert_eq!(responses, sent);
    }
}

#[test]
fn requests_taken_are_carried_out_to_the_last_without_another_from_the_ring() {
    let memory = Pages::new(1);
    let log_memory = Pages::new(InflightLog::<X86_64, Pages>::bytes(32) / 4096);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    for request in [io(1, 1, 0, &[(0, 7)]), io(2, 2, 8, &[(0, 7)]), io(1, 3, 16, &[(0, 7)])] {
        assert!(front.push(&request));
    }
    let _ = front.commit();
    let mut killed: Queue<X86_64, Pages> =
        Queue::attach_recording(memory.clone(), LIMITS, log_memory.clone()).unwrap();
    // The write, and the barrier behind it.
    assert!(killed.poll().unwrap().is_some());
    assert_eq!(killed.poll(), Ok(None));
    drop(killed);

    let mut back: Queue<X86_64, Pages> = Queue::resume(memory, LIMITS, log_memory).unwrap();
    let mut operations = Vec::new();
    while let Some(tag) = back.poll_taken() {
        operations.push(back.requests()[tag].operation());
        assert_eq!(back.poll_taken(), None);
        back.complete(tag, Status::OKAY);
    }
    use Operation::{Flush, Write};
    assert_eq!((operations, back.in_flight()), (vec![Write, Flush, Write, Flush], 0));
    let _ = back.commit();
    let ids: Vec<_> = std::iter::from_fn(|| front.pop().unwrap()).map(|r| r.id).collect();
    assert_eq!(ids, [1, 2]);
    assert!(back.poll().unwrap().is_some());
}

#[test]
fn resume_with_mismatched_log_is_refused() {
    let memory = Pages::new(1);
    let log_memory = Pages::new(2);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let resume =
        || Queue::<X86_64, Pages, Pages>::resume(memory.clone(), LIMITS, log_memory.clone()).err().unwrap();
    assert!(matches!(resume(), ResumeError::LogMismatch(_)));
    let mut back: Queue<X86_64, Pages> =
        Queue::attach_recording(memory.clone(), LIMITS, log_memory.clone()).unwrap();
    assert!(front.push(&io(0, 1, 0, &[(0, 7)])));
    let _ = front.commit();
    assert!(back.poll().unwrap().is_some());
    // The frontend forges a response that no backend gave.
    memory.words().store32(8, 1);
    assert!(matches!(resume(), ResumeError::Lost { inflight_log: 1, ring: 0 }));
    memory.words().store32(8, 40);
    assert!(matches!(resume(), ResumeError::Fault(_)));
}
