use super::*;
use crate::throttle::limits::MAX_VALUE;
use proptest::prelude::*;

/// The windows in which a limit is to be kept.
const WINDOW: Duration = Duration::from_secs(5);

fn limits(kind: LimitKind, average: u64) -> IoLimits {
    IoLimits::default().with(kind, Limit { average, ..Limit::default() })
}

/// What a request counts for a limit, times 1,000.
fn counted(kind: LimitKind, cost: Cost, iops_size: u64) -> u128 {
    match kind {
        _ if !kind.counts(cost.write) => 0,
        _ if kind.counts_bytes() => u128::from(cost.bytes) * 1000,
        _ if iops_size == 0 => 1000,
        _ => u128::from((cost.bytes * 1000).div_ceil(iops_size).max(1000)),
    }
}

/// The most and the least that starts in any window, of these times and what starts then.
fn most_and_least(starts: &[(Duration, u128)]) -> (u128, u128) {
    let end = starts.last().unwrap().0;
    let mut sums = vec![0];
    starts.iter().for_each(|(_, count)| sums.push(sums[sums.len() - 1] + count));
    let sum = |from: Duration| -> u128 {
        let first = starts.partition_point(|(at, _)| *at < from);
        let last = starts.partition_point(|(at, _)| *at < from + WINDOW);
        sums[last] - sums[first]
    };
    let most = starts.iter().map(|(at, _)| sum(*at)).max().unwrap();
    // From the end of one start on, so that the next one is as far away as it can be.
    let whole = starts.iter().filter(|(at, _)| *at + WINDOW < end);
    let least = whole.map(|(at, _)| sum(*at + Duration::from_nanos(1))).min().unwrap_or(u128::MAX);
    (most, least)
}

fn arbitrary_kind() -> impl Strategy<Value = LimitKind> {
    proptest::sample::select(LimitKind::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever the sizes, and whoever asks: each ring asks for its next request once its last one has started.
    #[test]
    fn backlogged_rings_get_the_limit_within_two_percent_or_one_request(
        kind in arbitrary_kind(),
        average in prop_oneof![1u64..20, 20u64..1_000],
        sectors in proptest::collection::vec(1u64..256, 1..20),
        rings in 1usize..9,
        iops_size in prop_oneof![Just(0u64), 512u64..200_000],
    ) {
        // So that a window has about as many requests whatever is counted.
        let average = if kind.counts_bytes() { average * 8192 } else { average };
        let mut limiter =
            Limiter::new(&IoLimits { iops_size, ..limits(kind, average) }, Credit::Full, Duration::ZERO);
        let costs: Vec<_> = sectors.iter().map(|sectors| {
            Cost { write: !kind.counts(false), bytes: sectors * 512 }
        }).collect();
        let largest = costs.iter().map(|cost| counted(kind, *cost, iops_size)).max().unwrap();
        let window = u128::from(average) * 1000 * WINDOW.as_millis() / 1000;
        let tolerance = (window / 50).max(largest) + 1000;
        // The time at which each ring asks next.
        let mut next = vec![Duration::ZERO; rings];
        let mut starts = Vec::new();
        let mut total = 0;
        for number in 0..20_000 {
            let ring = (0..rings).min_by_key(|ring| next[*ring]).unwrap();
            let cost = costs[number % costs.len()];
            let at = limiter.reserve(cost, next[ring]);
            prop_assert!(at >= next[ring]);
            next[ring] = at;
            starts.push((at, counted(kind, cost, iops_size)));
            total += counted(kind, cost, iops_size);
            if total > 3 * window + 20 * largest {
                break;
            }
        }
        starts.sort_by_key(|(at, _)| *at);
        // The last ones of rings that ask no more.
        starts.truncate(starts.len() - starts.len().min(2 * rings));
        prop_assume!(!starts.is_empty());
        let (most, least) = most_and_least(&starts);
        prop_assert!(most <= window + tolerance, "{most} > {window} + {tolerance}");
        prop_assert!(least >= window.saturating_sub(tolerance), "{least} < {window} - {tolerance}");
    }

    /// A thread that is late, by less than is saved up, loses nothing.
    #[test]
    fn ring_whose_thread_is_late_gets_its_limit(
        average in 10u64..2_000,
        late in proptest::collection::vec(0u64..20_000, 1..50),
    ) {
        let mut limiter = Limiter::new(&limits(LimitKind::IopsRead, average), Credit::None, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut count = 0;
        while now < WINDOW {
            now = limiter.reserve(Cost { write: false, bytes: 512 }, now);
            now += Duration::from_micros(late[count % late.len()] * u64::from(count % 50 == 0));
            count += 1;
        }
        let expected = average * WINDOW.as_secs();
        prop_assert!((count as u64).abs_diff(expected) <= (expected / 50).max(2), "{count} of {expected}");
    }

    #[test]
    fn no_value_panics_or_makes_a_time_that_is_past(
        values in proptest::collection::vec(prop_oneof![0..=MAX_VALUE, 0u64..3, Just(MAX_VALUE)], 19),
        asked in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 1..40),
    ) {
        let mut all = IoLimits { iops_size: values[18], ..IoLimits::default() };
        for (kind, of_kind) in LimitKind::ALL.into_iter().zip(values.chunks(3)) {
            all = all.with(kind, Limit { average: of_kind[0], max: of_kind[1], max_length: of_kind[2] });
        }
        let mut limiter = Limiter::new(&all, Credit::Full, Duration::ZERO);
        let throttle = Throttle::new(all, Credit::Full, Instant::now());
        for (now, bytes, write) in asked {
            let now = Duration::from_nanos(now);
            let at = limiter.reserve(Cost { write, bytes: bytes.into() }, now);
            prop_assert!(at >= now);
            let _ = throttle.instant(at);
        }
    }
}

#[test]
fn request_that_no_bucket_can_hold_starts_late_and_the_next_one_after_what_it_took() {
    let mut limiter = Limiter::new(&limits(LimitKind::BpsTotal, 1 << 20), Credit::Full, Duration::ZERO);
    let mut write = |bytes| limiter.reserve(Cost { write: true, bytes }, Duration::ZERO).as_millis();
    // The bucket is full, and goes into debt.
    assert_eq!(write(16 << 20), 0);
    assert_eq!(write(16 << 20), 16_000);
    assert_eq!(write(512), 31_950);
}

#[test]
fn burst_lasts_as_long_as_max_length_says_at_its_own_rate() {
    let limit = Limit { average: 100, max: 1000, max_length: 2 };
    let all = IoLimits::default().with(LimitKind::IopsTotal, limit);
    let mut limiter = Limiter::new(&all, Credit::Full, Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut starts = Vec::new();
    while now < Duration::from_secs(7) {
        now = limiter.reserve(Cost { write: false, bytes: 512 }, now);
        starts.push(now);
    }
    let until = |seconds| starts.iter().filter(|at| **at < Duration::from_secs(seconds)).count();
    assert!(until(1).abs_diff(1000) <= 51, "{}", until(1));
    assert!(until(2).abs_diff(2000) <= 51, "{}", until(2));
    assert!((until(7) - until(2)).abs_diff(500) <= 52, "{}", until(7) - until(2));
    // Saved up again while less is used.
    let later = now + Duration::from_secs(60);
    let burst = (0..1000).map(|_| limiter.reserve(Cost { write: false, bytes: 512 }, later)).max().unwrap();
    assert!(burst - later <= Duration::from_secs(1), "{burst:?}");
}

#[test]
fn each_limit_counts_what_its_name_says() {
    let [read, write] = [false, true].map(|write| Cost { write, bytes: 4096 });
    let discard = Cost { write: true, bytes: 0 };
    let waits = |kind, cost| {
        let mut limiter = Limiter::new(&limits(kind, 1), Credit::Full, Duration::ZERO);
        limiter.reserve(cost, Duration::ZERO);
        limiter.reserve(cost, Duration::ZERO) > Duration::ZERO
    };
    for (kind, expected) in [
        (LimitKind::IopsTotal, [true, true, true]),
        (LimitKind::IopsRead, [true, false, false]),
        (LimitKind::IopsWrite, [false, true, true]),
        (LimitKind::BpsTotal, [true, true, false]),
        (LimitKind::BpsRead, [true, false, false]),
        (LimitKind::BpsWrite, [false, true, false]),
    ] {
        assert_eq!([read, write, discard].map(|cost| waits(kind, cost)), expected, "{kind:?}");
    }
}

#[test]
fn request_larger_than_iops_size_counts_as_several() {
    let all = IoLimits { iops_size: 4096, ..limits(LimitKind::IopsTotal, 10) };
    let mut limiter = Limiter::new(&all, Credit::None, Duration::ZERO);
    let mut read = |bytes| limiter.reserve(Cost { write: false, bytes }, Duration::ZERO).as_millis();
    // The bucket has space for half a request, and each is due when it is full: 50 ms after the one before has been paid for.
    assert_eq!([read(512), read(4096), read(10_240), read(4096)], [50, 150, 250, 500]);
}
