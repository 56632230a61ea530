use super::*;
use crate::throttle::{Credit, IoLimits, Limit, LimitKind};
use proptest::prelude::*;
use ring_abi::blkif::{Discard, Request};

use crate::request::Operation;

/// A table of requests of these operations and lengths in bytes, each named by its place.
fn table(operations: impl IntoIterator<Item = (Operation, u32)>) -> RequestTable {
    let operations: Vec<_> = operations.into_iter().collect();
    let requests = operations.iter().map(|(operation, _)| match operation {
        Operation::Discard => {
            Request::Discard(Discard { flag: 0, handle: 0, id: 1, sector_number: 0, nr_sectors: 8 })
        }
        _ => Request::default(),
    });
    let tags = requests.enumerate().map(|(number, request)| (Tag(number as u32), request));
    let mut table = RequestTable::resume(operations.len() as u32, tags.collect::<Vec<_>>());
    for (number, (operation, bytes)) in operations.into_iter().enumerate() {
        table[Tag(number as u32)].admit(operation, bytes);
    }
    table
}

fn throttle(kind: LimitKind, average: u64, now: Instant) -> Arc<Throttle> {
    let limits = IoLimits::default().with(kind, Limit { average, ..Limit::default() });
    Throttle::new(limits, Credit::None, now)
}

/// What starts, and when, of rings that have all of their requests at once, each with a thread that sleeps until they are due.
struct Simulation {
    rings: Vec<Lanes>,
    start: Instant,
    /// The ring, the request and the time in milliseconds.
    started: Vec<(usize, Tag, u128)>,
}

impl Simulation {
    /// Rings that have so many requests each: the same ones of `table`, again and again.
    fn new(throttle: &Arc<Throttle>, table: &RequestTable, requests: &[usize], start: Instant) -> Simulation {
        let ring = |count: &usize| {
            let mut lanes = Lanes::new(Some(throttle.clone()));
            let mut tags = (0..table.len() as u32).map(Tag).cycle().take(*count).collect();
            lanes.put(table, &mut tags);
            lanes
        };
        Simulation { rings: requests.iter().map(ring).collect(), start, started: Vec::new() }
    }

    /// Runs until nothing is due before `end`.
    fn run(&mut self, end: Duration) {
        loop {
            let due = self.rings.iter().enumerate().filter_map(|(ring, lanes)| Some((lanes.due()?, ring)));
            let Some((due, ring)) = due.min().filter(|(due, _)| *due < self.start + end) else { return };
            // Waiting is rounded up to milliseconds.
            let millis = due.saturating_duration_since(self.start).as_nanos().div_ceil(1_000_000) as u64;
            let now = self.start + Duration::from_millis(millis);
            let mut tags = Vec::new();
            self.rings[ring].release(now, &mut tags);
            self.started.extend(tags.into_iter().map(|tag| (ring, tag, u128::from(millis))));
        }
    }

    fn of(&self, ring: usize) -> usize {
        self.started.iter().filter(|(of, ..)| *of == ring).count()
    }
}

#[test]
fn flushes_pass_and_reads_and_writes_keep_their_order() {
    use Operation::{Discard, Flush, Read, Write};
    let now = Instant::now();
    let requests = table([(Read, 512), (Write, 512), (Flush, 0), (Read, 512), (Discard, 0), (Flush, 0)]);
    let mut lanes = Lanes::new(Some(throttle(LimitKind::IopsTotal, 1, now)));
    let mut tags: Vec<_> = (0..6).map(Tag).collect();
    lanes.put(&requests, &mut tags);
    assert_eq!(tags, [Tag(2), Tag(5)]);
    let mut simulation = Simulation { rings: vec![lanes], start: now, started: Vec::new() };
    simulation.run(Duration::from_secs(9));
    // The bucket has space for 50 ms, and reads and writes take turns.
    let expected = [(0, 50), (1, 1050), (3, 2050), (4, 3050)];
    assert_eq!(simulation.started, expected.map(|(tag, at)| (0, Tag(tag), at)));
}

#[test]
fn limit_of_reads_does_not_delay_writes() {
    let now = Instant::now();
    let requests =
        table((0..100).map(|n| (if n % 2 == 0 { Operation::Read } else { Operation::Write }, 4096)));
    let mut lanes = Lanes::new(Some(throttle(LimitKind::BpsRead, 1, now)));
    let mut tags: Vec<_> = (0..100).map(Tag).collect();
    lanes.put(&requests, &mut tags);
    lanes.release(now, &mut tags);
    assert_eq!(tags.len(), 51, "all writes, and the first read, which goes into debt");
    assert!(lanes.has_waiting() && lanes.due().unwrap() > now + Duration::from_secs(4000));
}

#[test]
fn limits_that_are_changed_hold_for_requests_that_wait() {
    let now = Instant::now();
    let requests = table((0..10).map(|_| (Operation::Write, 4096)));
    let mut lanes = Lanes::new(Some(throttle(LimitKind::IopsWrite, 1, now)));
    let mut tags: Vec<_> = (0..10).map(Tag).collect();
    lanes.put(&requests, &mut tags);
    lanes.release(now, &mut tags);
    assert_eq!(tags, []);
    lanes.set_throttle(Some(throttle(LimitKind::IopsWrite, 1_000_000, now)));
    lanes.release(now, &mut tags);
    assert_eq!(lanes.due(), Some(now + Duration::from_micros(10)));
    lanes.set_throttle(None);
    assert!(lanes.is_active());
    lanes.release(now, &mut tags);
    assert_eq!(tags, (0..10).map(Tag).collect::<Vec<_>>());
    assert!(!lanes.is_active() && lanes.due().is_none());
}

/// Else a guest would get around its limits by connecting again and again.
#[test]
fn requests_of_a_ring_that_ends_start_at_once_and_the_next_ring_waits_for_them() {
    let now = Instant::now();
    let requests = table((0..100).map(|_| (Operation::Read, 4096)));
    let throttle = throttle(LimitKind::IopsRead, 10, now);
    let mut lanes = Lanes::new(Some(throttle.clone()));
    let mut tags: Vec<_> = (0..100).map(Tag).collect();
    lanes.put(&requests, &mut tags);
    lanes.release_all(now, &mut tags);
    assert_eq!((tags.len(), lanes.has_waiting()), (100, false));
    let mut next = Lanes::new(Some(throttle));
    next.put(&requests, &mut tags);
    next.release(now, &mut tags);
    assert_eq!((tags.len(), next.due()), (0, Some(now + Duration::from_millis(10_050))));
}

#[test]
fn small_request_does_not_wait_for_a_large_one_behind_it() {
    let now = Instant::now();
    let requests = table([(Operation::Read, 512), (Operation::Read, 16 << 20)]);
    let mut lanes = Lanes::new(Some(throttle(LimitKind::BpsTotal, 1 << 20, now)));
    let mut tags: Vec<_> = (0..2).map(Tag).collect();
    lanes.put(&requests, &mut tags);
    lanes.release(now, &mut tags);
    assert!(tags.is_empty() && lanes.due().unwrap() < now + Duration::from_millis(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn rings_that_share_a_limit_get_equal_parts_and_together_exactly_the_limit(
        average in prop_oneof![20u64..500, 500u64..20_000],
        rings in 1usize..6,
        sectors in 1u32..256,
    ) {
        let start = Instant::now();
        let seconds = if average < 500 { 5 } else { 1 };
        let expected = average * seconds;
        // Who has more of them gets no more.
        let requests: Vec<_> = (0..rings).map(|ring| (1 + ring) * expected as usize + 10).collect();
        let throttle = throttle(LimitKind::IopsTotal, average, start);
        let mut simulation = Simulation::new(&throttle, &table([(Operation::Read, sectors * 512)]), &requests, start);
        simulation.run(Duration::from_secs(seconds));
        let all = simulation.started.len() as u64;
        prop_assert!(all.abs_diff(expected) <= (expected / 50).max(1), "{all} of {expected}");
        let part = expected as usize / rings;
        for ring in 0..rings {
            let got = simulation.of(ring);
            prop_assert!(got.abs_diff(part) <= part / 20 + 20, "ring {ring} got {got}, not {part}");
        }
    }

    #[test]
    fn reads_and_writes_of_a_ring_get_equal_parts(average in 20u64..20_000) {
        let start = Instant::now();
        // Reads come first, and there are more of them.
        let requests = table([Operation::Read, Operation::Read, Operation::Write].map(|operation| (operation, 4096)));
        let throttle = throttle(LimitKind::IopsTotal, average, start);
        let mut simulation = Simulation::new(&throttle, &requests, &[4 * average as usize + 10], start);
        simulation.run(Duration::from_secs(1));
        let writes = simulation.started.iter().filter(|(_, tag, _)| tag.0 == 2).count() as u64;
        let all = simulation.started.len() as u64;
        prop_assert!(all.abs_diff(average) <= average / 50 + 1, "{all} of {average}");
        prop_assert!(writes.abs_diff(average / 2) <= average / 20 + 20, "{writes} of {average}");
    }
}
