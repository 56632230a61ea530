//! Every request is answered exactly once, whatever it is and in whatever order it is done.

use super::*;
use crate::harness::hostile;
use arrayvec::ArrayVec;
use proptest::prelude::*;
use ring_abi::GrantRef;
use ring_abi::blkif::{Discard, Indirect, Io, Segment, X86_32, X86_64};
use ring_abi::ring::Front;
use ring_abi::testing::Pages;
use std::collections::BTreeMap;

const LIMITS: Limits = Limits { sectors: 1 << 20, sector_size: 512, read_only: false, flush: true };

fn io(operation: u8, id: u64, sector_number: u64, segments: &[(u8, u8)]) -> Request {
    let segments: ArrayVec<_, 11> = segments
        .iter()
        .map(|&(first_sect, last_sect)| Segment { gref: GrantRef(9), first_sect, last_sect })
        .collect();
    Request::Io(Io { operation, handle: 0, id, sector_number, nr_segments: segments.len() as u8, segments })
}

fn any_request() -> impl Strategy<Value = Request> {
    // Few ids, so that many repeat.
    let id = 0..5u64;
    let segments = prop::collection::vec((0..8u8, 0..9u8), 0..=11);
    prop_oneof![
        8 => (0..4u8, id.clone(), 0..(1u64 << 21), segments).prop_map(|(op, id, s, g)| io(op, id, s, &g)),
        1 => (any::<u8>(), id.clone(), any::<[u64; 2]>())
            .prop_map(|(flag, id, [sector_number, nr_sectors])| {
                Request::Discard(Discard { flag, handle: 0, id, sector_number, nr_sectors })
            }),
        1 => (any::<u8>(), id.clone(), any::<u16>()).prop_map(|(indirect_op, id, nr_segments)| {
            let indirect_grefs = [GrantRef(1); 8];
            Request::Indirect(Indirect { indirect_op, nr_segments, id, sector_number: 0, handle: 0, indirect_grefs })
        }),
        1 => (7..255u8, id).prop_map(|(operation, id)| Request::Unknown { operation, id }),
    ]
}

/// Sends all, completes in the order that `picks` says, and gives the answers.
fn exchange<P>(requests: &[Request], picks: &[usize]) -> Vec<Response>
where
    P: Protocol<Request = Request, Response = Response>,
{
    let memory = Pages::new(1);
    let mut front: Front<P, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<P, Pages> = Queue::attach(memory, LIMITS).unwrap();
    let (mut unsent, mut open, mut answers) = (requests.iter(), Vec::new(), Vec::new());
    let mut next = unsent.next();
    let mut picks = picks.iter().copied().cycle();
    while answers.len() < requests.len() {
        while next.is_some_and(|request| front.push(request)) {
            next = unsent.next();
        }
        let _ = front.commit();
        while let Some(task) = back.poll().unwrap() {
            open.push(task.job);
            if picks.next().unwrap_or(0) % 3 == 0 {
                break;
            }
        }
        if !open.is_empty() {
            let job = open.swap_remove(picks.next().unwrap_or(0) % open.len());
            back.complete(job, Status::OKAY);
        }
        let _ = back.commit();
        while let Some(answer) = front.pop().unwrap() {
            answers.push(answer);
        }
    }
    assert_eq!((back.in_flight(), front.in_flight()), (0, 0));
    answers
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
    fn ids_in_are_ids_out(
        requests in prop::collection::vec(any_request(), 1..150),
        picks in prop::collection::vec(any::<usize>(), 1..50),
    ) {
        let sent = counted(requests.iter().map(|r| (r.id(), r.operation())), |x| x);
        for answers in [exchange::<X86_64>(&requests, &picks), exchange::<X86_32>(&requests, &picks)] {
            prop_assert_eq!(&sent, &counted(answers.iter().map(|a| (a.id, a.operation)), |x| x));
        }
    }

    #[test]
    fn a_hostile_frontend_harms_nobody(script in prop::collection::vec(any::<u8>(), 0..4000)) {
        hostile(&script);
    }
}

#[test]
fn nothing_passes_a_barrier() {
    let memory = Pages::new(1);
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let mut back: Queue<X86_64, Pages> = Queue::attach(memory, LIMITS).unwrap();
    for request in [io(1, 1, 0, &[(0, 7)]), io(2, 2, 8, &[(0, 7)]), io(1, 3, 16, &[(0, 7)])] {
        assert!(front.push(&request));
    }
    let _ = front.commit();
    let before = back.poll().unwrap().unwrap();
    assert_eq!((before.op, before.sector), (Op::Write, 0));
    assert_eq!(back.poll(), Ok(None));
    assert_eq!(back.arm(), Ok(false));
    back.complete(before.job, Status::OKAY);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let step = back.poll().unwrap().unwrap();
        seen.push((step.op, step.sector));
        if seen.len() < 4 {
            assert_eq!(back.poll(), Ok(None), "while {seen:?}");
        }
        back.complete(step.job, Status::OKAY);
    }
    assert_eq!(seen, [(Op::Flush, 0), (Op::Write, 8), (Op::Flush, 0), (Op::Write, 16)]);
    let _ = back.commit();
    let ids: Vec<_> = std::iter::from_fn(|| front.pop().unwrap()).map(|r| r.id).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn an_index_that_ran_away_is_a_fault() {
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
    fn whoever_is_killed_his_successor_answers_what_he_did_not(
        requests in prop::collection::vec(any_request(), 1..150),
        steps in prop::collection::vec(any_step(), 1..600),
    ) {
        let memory = Pages::new(1);
        let kept = Pages::new(InflightLog::<X86_64, Pages>::bytes(32) / 4096);
        let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
        let mut back: Queue<X86_64, Pages> = Queue::attach_recording(memory.clone(), LIMITS, kept.clone()).unwrap();
        let (mut unsent, mut open, mut answers) = (requests.iter().peekable(), Vec::new(), Vec::new());
        // After the script whatever is left is done in order.
        let rest = [Step::Poll, Step::Complete(0), Step::Commit];
        for step in steps.iter().chain(rest.iter().cycle().take(30 * requests.len())) {
            while unsent.peek().is_some_and(|request| front.push(request)) {
                unsent.next();
            }
            let _ = front.commit();
            match *step {
                Step::Poll => open.extend(back.poll().unwrap().map(|task| task.job)),
                Step::Complete(_) if open.is_empty() => {}
                Step::Complete(which) => back.complete(open.swap_remove(which % open.len()), Status::OKAY),
                Step::Commit => drop(back.commit()),
                Step::Kill => {
                    open.clear();
                    back = Queue::resume(memory.clone(), LIMITS, kept.clone()).unwrap();
                }
            }
            while let Some(response) = front.pop().unwrap() {
                answers.push((response.id, response.operation));
            }
        }
        let mut asked: Vec<_> = requests.iter().map(|r| (r.id(), r.operation())).collect();
        asked.sort_unstable();
        answers.sort_unstable();
        prop_assert_eq!(answers, asked);
    }
}

#[test]
fn a_ring_that_a_ledger_does_not_fit_is_not_taken_over() {
    let (memory, kept) = (Pages::new(1), Pages::new(2));
    let mut front: Front<X86_64, Pages> = Front::init(memory.clone()).unwrap();
    let resume =
        || Queue::<X86_64, Pages, Pages>::resume(memory.clone(), LIMITS, kept.clone()).err().unwrap();
    assert!(matches!(resume(), ResumeError::LogMismatch(_)));
    let mut back: Queue<X86_64, Pages> =
        Queue::attach_recording(memory.clone(), LIMITS, kept.clone()).unwrap();
    assert!(front.push(&io(0, 1, 0, &[(0, 7)])));
    let _ = front.commit();
    assert!(back.poll().unwrap().is_some());
    // A frontend that claims an answer which nobody gave.
    memory.words().store32(8, 1);
    assert!(matches!(resume(), ResumeError::Lost { inflight_log: 1, ring: 0 }));
    memory.words().store32(8, 40);
    assert!(matches!(resume(), ResumeError::Fault(_)));
}
