//! Every item is given back exactly once, over any number of backends.

use super::*;
use crate::harness::{hostile, segments};
use alloc::vec::Vec;
use proptest::prelude::*;
use ring_abi::blkif::X86_64;
use ring_abi::ring::Back;
use ring_abi::testing::Pages;

type Under = Queue<X86_64, Pages, u64>;

fn connected(pages: usize) -> (Under, Back<X86_64, Pages>) {
    let memory = Pages::new(pages);
    let mut queue = Under::new(0);
    queue.connect(memory.clone()).unwrap();
    (queue, Back::attach(memory).unwrap())
}

fn take(back: &mut Back<X86_64, Pages>) -> Vec<Request> {
    core::iter::from_fn(|| back.pop().unwrap()).collect()
}

fn answer(back: &mut Back<X86_64, Pages>, id: u64, operation: u8) {
    back.push(&Response { id, operation, status: Status::OKAY });
    let _ = back.commit();
}

#[test]
fn what_was_not_answered_is_asked_again_in_order() {
    let (mut queue, mut back) = connected(2);
    for item in 0..40 {
        queue.submit(Op::Write, item, segments(), item).unwrap();
    }
    let _ = queue.commit();
    let requests = take(&mut back);
    assert_eq!(requests.len(), 40);
    for n in [3, 1, 0] {
        answer(&mut back, requests[n].id(), OP_WRITE);
    }
    while queue.poll().unwrap().is_some() {}
    // The backend dies; the next one has a smaller ring.
    queue.disconnect();
    queue.submit(Op::Write, 40, segments(), 40).unwrap();
    let memory = Pages::new(1);
    queue.connect(memory.clone()).unwrap();
    let mut back = Back::attach(memory).unwrap();
    let (mut sectors, mut items) = (Vec::new(), Vec::new());
    while items.len() < 38 {
        let _ = queue.commit();
        for request in take(&mut back) {
            let Request::Io(io) = &request else { panic!("{request:?}") };
            sectors.push(io.sector_number);
            answer(&mut back, io.id, io.operation);
        }
        while let Some((item, status)) = queue.poll().unwrap() {
            assert_eq!(status, Status::OKAY);
            items.push(item);
        }
    }
    let expected: Vec<u64> = [2].into_iter().chain(4..41).collect();
    assert_eq!((sectors, items), (expected.clone(), expected));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn wrong_answers_are_faults() {
    let ask = || {
        let (mut queue, mut back) = connected(1);
        queue.submit(Op::Read, 0, segments(), 1).unwrap();
        queue.submit(Op::Read, 0, segments(), 2).unwrap();
        let _ = queue.commit();
        let ids: Vec<_> = take(&mut back).iter().map(Request::id).collect();
        (queue, back, ids)
    };
    let (mut queue, mut back, ids) = ask();
    answer(&mut back, ids[0] + 7, OP_READ);
    assert_eq!(queue.poll(), Err(Fault::UnknownId { id: ids[0] + 7 }));

    let (mut queue, mut back, ids) = ask();
    answer(&mut back, ids[0], OP_READ);
    answer(&mut back, ids[0], OP_READ);
    assert_eq!(queue.poll(), Ok(Some((1, Status::OKAY))));
    // The place is used again, under another id.
    queue.submit(Op::Read, 0, segments(), 3).unwrap();
    assert_eq!(queue.poll(), Err(Fault::UnknownId { id: ids[0] }));

    let (mut queue, mut back, ids) = ask();
    answer(&mut back, ids[1], OP_WRITE);
    let fault = Fault::WrongOperation { id: ids[1], found: OP_WRITE, expected: OP_READ };
    assert_eq!(queue.poll(), Err(fault));

    let (memory, mut queue) = (Pages::new(1), Under::new(0));
    queue.connect(memory.clone()).unwrap();
    memory.words().store32(8, 1);
    assert!(matches!(queue.poll(), Err(Fault::Ring(_))));
}

#[test]
fn a_full_ring_gives_the_item_back() {
    let (mut queue, _back) = connected(1);
    for item in 0..32 {
        queue.submit(Op::Flush, 0, Segments::new(), item).unwrap();
    }
    assert_eq!(queue.submit(Op::Flush, 0, Segments::new(), 32), Err(32));
    assert_eq!(queue.in_flight(), 32);
}

proptest! {
    #[test]
    fn a_hostile_backend_harms_nobody(script in prop::collection::vec(any::<u8>(), 0..4000)) {
        hostile(&script);
    }
}
