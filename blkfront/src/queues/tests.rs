//! Every item is given back exactly once, over any number of connections with any number of queues; barriers stay in order.

use super::*;
use alloc::vec;
use proptest::prelude::*;
use ring_abi::blkif::{OP_WRITE, X86_64};
use ring_abi::ring::Back;
use ring_abi::testing::Pages;

type TestQueues = Queues<X86_64, Pages, u64>;
type TestBack = Back<X86_64, Pages>;

fn connect(queues: &mut TestQueues, count: usize) -> Vec<TestBack> {
    drop(queues.disconnect());
    let memories: Vec<_> = (0..count).map(|_| Pages::new(1)).collect();
    queues.connect(memories.clone()).unwrap();
    memories.into_iter().map(|memory| Back::attach(memory).unwrap()).collect()
}

fn submit(queues: &mut TestQueues, operation: Operation, item: u64) -> Result<(), u64> {
    queues.submit_with(operation, item, item, |_, segments| segments.extend(crate::harness::segments()))
}

fn commit(queues: &mut TestQueues) {
    let count = queues.iter().len();
    for number in 0..count {
        let _ = queues.commit(number);
    }
}

/// Takes a request of this ring, if there is one, and answers it; returns its sector.
fn serve_one(back: &mut TestBack) -> Option<u64> {
    let request = back.pop().unwrap()?;
    let Request::Io(io) = &request else { panic!("{request:?}") };
    back.push(&Response { id: io.id, operation: io.operation, status: Status::OKAY });
    let _ = back.commit();
    Some(io.sector_number)
}

fn poll(queues: &mut TestQueues) -> Vec<u64> {
    let mut items = Vec::new();
    queues.poll(|item, _| items.push(item)).unwrap();
    items
}

#[test]
fn few_requests_go_to_one_queue_and_many_to_all() {
    let mut queues = TestQueues::new();
    connect(&mut queues, 4);
    let in_flight = |queues: &TestQueues| queues.iter().map(Queue::in_flight).collect::<Vec<_>>();
    (0..8).for_each(|item| submit(&mut queues, Operation::Read, item).unwrap());
    assert_eq!(in_flight(&queues), [8, 0, 0, 0]);
    (8..40).for_each(|item| submit(&mut queues, Operation::Read, item).unwrap());
    assert_eq!(in_flight(&queues), [16, 8, 8, 8]);
    (40..128).for_each(|item| submit(&mut queues, Operation::Read, item).unwrap());
    assert_eq!((in_flight(&queues), queues.size()), (vec![32; 4], 128));
    assert_eq!(submit(&mut queues, Operation::Read, 128), Err(128));
}

#[test]
fn barrier_waits_for_other_queues_and_keeps_what_follows_on_its_own() {
    let mut queues = TestQueues::new();
    let mut backs = connect(&mut queues, 2);
    (0..9).for_each(|item| submit(&mut queues, Operation::Write, item).unwrap());
    assert_eq!(submit(&mut queues, Operation::Barrier, 9), Err(9));
    commit(&mut queues);
    assert_eq!(serve_one(&mut backs[1]), Some(8));
    assert_eq!(poll(&mut queues), [8]);
    // To the ring of those that it is to follow.
    submit(&mut queues, Operation::Barrier, 9).unwrap();
    (10..20).for_each(|item| submit(&mut queues, Operation::Write, item).unwrap());
    assert_eq!(queues.iter().map(Queue::in_flight).collect::<Vec<_>>(), [19, 0]);
    commit(&mut queues);
    assert_eq!(core::iter::from_fn(|| serve_one(&mut backs[0])).count(), 19);
    assert_eq!(poll(&mut queues).len(), 19);
    // And then to any.
    (20..29).for_each(|item| submit(&mut queues, Operation::Write, item).unwrap());
    assert_eq!(queues.iter().map(Queue::in_flight).collect::<Vec<_>>(), [8, 1]);
}

#[test]
fn backend_with_fewer_queues_is_sent_every_request() {
    let mut queues = TestQueues::new();
    connect(&mut queues, 3);
    (0..96).for_each(|item| submit(&mut queues, Operation::Write, item).unwrap());
    commit(&mut queues);
    let mut backs = connect(&mut queues, 1);
    assert_eq!(submit(&mut queues, Operation::Write, 96), Err(96), "others wait");
    let mut sectors = Vec::new();
    let mut items = Vec::new();
    while items.len() < 96 {
        commit(&mut queues);
        sectors.extend(core::iter::from_fn(|| serve_one(&mut backs[0])));
        let before = items.len();
        items.extend(poll(&mut queues));
        assert!(items.len() > before, "no progress after {before}");
    }
    assert_eq!(queues.in_flight(), 0);
    sectors.sort_unstable();
    items.sort_unstable();
    assert_eq!((sectors, items), ((0..96).collect(), (0..96).collect()));
    submit(&mut queues, Operation::Write, 96).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Submit(bool),
    Serve(usize),
    Poll,
    Connect(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..12u8).prop_map(|one| Step::Submit(one == 0)),
        6 => (0..4usize).prop_map(Step::Serve),
        3 => Just(Step::Poll),
        1 => (1..5usize).prop_map(Step::Connect),
    ]
}

proptest! {
    /// What the backend is sent on one connection: a barrier never while an earlier request is unanswered elsewhere.
    #[test]
    fn items_come_back_once_each_and_barriers_in_order(steps in prop::collection::vec(any_step(), 1..400)) {
        let mut queues = TestQueues::new();
        let mut backs = connect(&mut queues, 2);
        let mut next = 0;
        let mut open = std::collections::BTreeMap::new();
        let rest = [Step::Serve(0), Step::Serve(1), Step::Serve(2), Step::Serve(3), Step::Poll];
        for step in steps.iter().chain(rest.iter().cycle().take(5 * 400)) {
            match *step {
                Step::Submit(is_barrier) => {
                    let operation = if is_barrier { Operation::Barrier } else { Operation::Write };
                    if submit(&mut queues, operation, next).is_ok() {
                        open.insert(next, operation);
                    }
                    next += 1;
                    commit(&mut queues);
                }
                Step::Serve(which) => {
                    let which = which % backs.len();
                    let request = backs[which].pop().unwrap();
                    if let Some(Request::Io(io)) = request {
                        if io.operation != OP_WRITE {
                            // All earlier ones were sent on this ring, or are answered.
                            let elsewhere = queues.iter().enumerate().filter(|(number, _)| *number != which);
                            prop_assert_eq!(elsewhere.map(|(_, queue)| queue.in_flight()).sum::<usize>(), 0);
                        }
                        backs[which].push(&Response { id: io.id, operation: io.operation, status: Status::OKAY });
                        let _ = backs[which].commit();
                    }
                }
                Step::Poll => {
                    for item in poll(&mut queues) {
                        prop_assert!(open.remove(&item).is_some(), "{} twice", item);
                    }
                    commit(&mut queues);
                }
                Step::Connect(count) => backs = connect(&mut queues, count),
            }
            prop_assert_eq!(queues.in_flight(), open.len());
        }
        prop_assert!(open.is_empty(), "lost: {:?}", open);
    }
}
