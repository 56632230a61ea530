//! Every item is given back exactly once, over any number of connections.

use super::*;
use crate::harness::{hostile, segments};
use alloc::vec::Vec;
use proptest::prelude::*;
use ring_abi::blkif::X86_64;
use ring_abi::ring::Back;
use ring_abi::testing::Pages;

type TestQueue = Queue<X86_64, Pages, u64>;

fn connected(pages: usize) -> (TestQueue, Back<X86_64, Pages>) {
    let memory = Pages::new(pages);
    let mut queue = TestQueue::new(0);
    queue.connect(memory.clone()).unwrap();
    (queue, Back::attach(memory).unwrap())
}

fn take_all(back: &mut Back<X86_64, Pages>) -> Vec<Request> {
    core::iter::from_fn(|| back.pop().unwrap()).collect()
}

fn poll(queue: &mut TestQueue) -> Result<Vec<(u64, Status)>, Fault> {
    let mut completed = Vec::new();
    let count = queue.poll(|item, status| completed.push((item, status)))?;
    assert_eq!(count, completed.len());
    Ok(completed)
}

fn answer(back: &mut Back<X86_64, Pages>, id: u64, operation: u8) {
    back.push(&Response { id, operation, status: Status::OKAY });
    let _ = back.commit();
}

#[test]
fn reconnect_sends_unanswered_requests_again_in_order() {
    let (mut queue, mut back) = connected(2);
    for item in 0..40 {
        queue.submit(Operation::Write, item, &segments(), item).unwrap();
    }
    let _ = queue.commit();
    let requests = take_all(&mut back);
    assert_eq!(requests.len(), 40);
    for n in [3, 1, 0] {
        answer(&mut back, requests[n].id(), OP_WRITE);
    }
    poll(&mut queue).unwrap();
    // The backend is killed; its successor's ring is smaller.
    queue.disconnect();
    queue.submit(Operation::Write, 40, &segments(), 40).unwrap();
    let memory = Pages::new(1);
    queue.connect(memory.clone()).unwrap();
    let mut back = Back::attach(memory).unwrap();
    let mut sectors = Vec::new();
    let mut items = Vec::new();
    while items.len() < 38 {
        let _ = queue.commit();
        for request in take_all(&mut back) {
            let Request::Io(io) = &request else { panic!("{request:?}") };
            sectors.push(io.sector_number);
            answer(&mut back, io.id, io.operation);
        }
        for (item, status) in poll(&mut queue).unwrap() {
            assert_eq!(status, Status::OKAY);
            items.push(item);
        }
    }
    let expected: Vec<u64> = [2].into_iter().chain(4..41).collect();
    assert_eq!((sectors, items), (expected.clone(), expected));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn invalid_responses_are_faults() {
    let two_reads = || {
        let (mut queue, mut back) = connected(1);
        queue.submit(Operation::Read, 0, &segments(), 1).unwrap();
        queue.submit(Operation::Read, 0, &segments(), 2).unwrap();
        let _ = queue.commit();
        let ids: Vec<_> = take_all(&mut back).iter().map(Request::id).collect();
        (queue, back, ids)
    };
    let (mut queue, mut back, ids) = two_reads();
    answer(&mut back, ids[0] + 7, OP_READ);
    assert_eq!(poll(&mut queue), Err(Fault::UnknownId { id: ids[0] + 7 }));

    let (mut queue, mut back, ids) = two_reads();
    answer(&mut back, ids[0], OP_READ);
    answer(&mut back, ids[0], OP_READ);
    let mut completed = Vec::new();
    let polled = queue.poll(|item, _| completed.push(item));
    assert_eq!((completed, polled), ([1].into(), Err(Fault::UnknownId { id: ids[0] })));

    let (mut queue, mut back, ids) = two_reads();
    answer(&mut back, ids[0], OP_READ);
    assert_eq!(poll(&mut queue), Ok([(1, Status::OKAY)].into()));
    // The slot is used again, with another id.
    queue.submit(Operation::Read, 0, &segments(), 3).unwrap();
    answer(&mut back, ids[0], OP_READ);
    assert_eq!(poll(&mut queue), Err(Fault::UnknownId { id: ids[0] }));

    let (mut queue, mut back, ids) = two_reads();
    answer(&mut back, ids[1], OP_WRITE);
    let fault = Fault::WrongOperation { id: ids[1], found: OP_WRITE, expected: OP_READ };
    assert_eq!(poll(&mut queue), Err(fault));

    let memory = Pages::new(1);
    let mut queue = TestQueue::new(0);
    queue.connect(memory.clone()).unwrap();
    memory.words().store32(8, 1);
    assert!(matches!(poll(&mut queue), Err(Fault::Ring(_))));
}

#[test]
fn response_to_a_request_not_yet_sent_is_a_fault() {
    let (mut queue, _back) = connected(2);
    for item in 0..40 {
        queue.submit(Operation::Read, item, &segments(), item).unwrap();
    }
    queue.disconnect();
    let memory = Pages::new(1);
    queue.connect(memory.clone()).unwrap();
    let _ = queue.commit();
    let mut back = Back::attach(memory).unwrap();
    let sent: Vec<_> = take_all(&mut back).iter().map(Request::id).collect();
    assert_eq!(sent.len(), 32);
    let unsent = queue.unsent[3];
    answer(&mut back, sent[31], OP_READ);
    answer(&mut back, unsent, OP_READ);
    let mut completed = Vec::new();
    let polled = queue.poll(|item, _| completed.push(item));
    assert_eq!((completed, polled), ([31].into(), Err(Fault::UnknownId { id: unsent })));
}

#[test]
fn submit_to_full_ring_gives_the_item_back() {
    let (mut queue, _back) = connected(1);
    for item in 0..32 {
        queue.submit(Operation::Flush, 0, &[], item).unwrap();
    }
    assert_eq!(queue.submit(Operation::Flush, 0, &[], 32), Err(32));
    assert_eq!(queue.in_flight(), 32);
}

#[test]
fn poll_takes_all_responses_that_are_there_in_their_order() {
    let (mut queue, mut back) = connected(2);
    for item in 0..64 {
        queue.submit(Operation::Read, item, &segments(), item).unwrap();
    }
    let _ = queue.commit();
    let ids: Vec<_> = take_all(&mut back).iter().map(Request::id).collect();
    ids.iter().rev().for_each(|id| answer(&mut back, *id, OP_READ));
    let expected: Vec<_> = (0..64).rev().map(|item| (item, Status::OKAY)).collect();
    assert_eq!(poll(&mut queue), Ok(expected));
    assert_eq!(poll(&mut queue), Ok(Vec::new()));
    assert_eq!(queue.in_flight(), 0);
}

proptest! {
    #[test]
    fn hostile_backend_loses_and_repeats_no_item(script in prop::collection::vec(any::<u8>(), 0..4000)) {
        hostile(&script);
    }
}
