//! Rings at a medium that serves operations in the order of their coming, and takes as long for each.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

/// A ring whose frontend always has as many requests in flight, while it is there.
struct Ring {
    member: Member,
    depth: usize,
    at_medium: usize,
    served: u64,
}

/// A medium that serves one operation after the other.
#[derive(Default)]
struct Medium {
    shares: Shares,
    rings: Vec<Option<Ring>>,
    queue: VecDeque<usize>,
    now: Duration,
}

const SERVICE: Duration = Duration::from_micros(100);

impl Medium {
    fn join(&mut self, depth: usize) -> usize {
        self.join_as(DomId(self.rings.len() as u16), depth)
    }

    /// A ring of that guest.
    fn join_as(&mut self, owner: DomId, depth: usize) -> usize {
        let member = self.shares.join(owner);
        self.rings.push(Some(Ring { member, depth, at_medium: 0, served: 0 }));
        let number = self.rings.len() - 1;
        self.start(number);
        number
    }

    fn leave(&mut self, number: usize) {
        if let Some(ring) = self.rings[number].take() {
            self.shares.leave(ring.member);
        }
    }

    /// The ring hands on what it may.
    fn start(&mut self, number: usize) {
        let Some(ring) = &mut self.rings[number] else { return };
        let window = self.shares.window(ring.member, ring.depth, self.now);
        while ring.at_medium < window.min(ring.depth) {
            ring.at_medium += 1;
            self.queue.push_back(number);
        }
    }

    /// Serves so many operations. Returns how many each ring had in that time.
    fn serve(&mut self, operations: usize) -> Vec<u64> {
        self.rings.iter_mut().flatten().for_each(|ring| ring.served = 0);
        for _ in 0..operations {
            let number = self.queue.pop_front().expect("the medium is idle");
            self.now += SERVICE;
            if let Some(ring) = &mut self.rings[number] {
                ring.at_medium -= 1;
                ring.served += 1;
            }
            self.start(number);
        }
        self.rings.iter().flatten().map(|ring| ring.served).collect()
    }
}

#[test]
fn hog_of_depth_512_leaves_two_others_their_share() {
    let mut medium = Medium::default();
    for depth in [512, 32, 32] {
        medium.join(depth);
    }
    medium.serve(2000);
    let served = medium.serve(30_000);
    for served in served {
        assert!((9_800..=10_200).contains(&served), "{served}");
    }
}

#[test]
fn queues_of_one_guest_have_one_share_together() {
    let mut medium = Medium::default();
    for _ in 0..8 {
        medium.join_as(DomId(100), 64);
    }
    let victims = [32, 32].map(|depth| medium.join(depth));
    medium.serve(2000);
    let served = medium.serve(30_000);
    let hog: u64 = served[..victims[0]].iter().sum();
    // Eight queues have a whole number each.
    assert!((7_500..=10_200).contains(&hog), "{served:?}");
    assert!(served[..8].iter().all(|served| *served > 500), "{served:?}");
}

#[test]
fn ring_that_went_idle_is_not_counted_after_two_periods() {
    let mut shares = Shares::default();
    let (hog, other) = (shares.join(DomId(1)), shares.join(DomId(2)));
    shares.window(other, 512, Duration::ZERO);
    assert_eq!(shares.window(hog, 512, 100 * PERIOD), AT_ONCE / 2, "it may be served slowly");
    shares.window(other, 0, 100 * PERIOD);
    assert_eq!(shares.window(hog, 512, 101 * PERIOD), AT_ONCE / 2);
    assert_eq!(shares.window(hog, 512, 102 * PERIOD), usize::MAX);
}

#[test]
fn what_rings_want_less_others_have_more() {
    let mut shares = Shares::default();
    let members = [1, 2, 3].map(|guest| shares.join(DomId(guest)));
    let mut window = |number: usize, wanted| shares.window(members[number], wanted, Duration::ZERO);
    assert_eq!(window(0, 4), usize::MAX);
    assert_eq!(window(1, 60), usize::MAX, "together they want no more than there is");
    assert_eq!(window(2, 512), (AT_ONCE - 4) / 2);
    assert_eq!(window(1, 60), (AT_ONCE - 4) / 2);
}

#[test]
fn each_of_many_guests_has_a_few() {
    let mut shares = Shares::default();
    let members: Vec<Member> = (0..100).map(|guest| shares.join(DomId(guest))).collect();
    for round in 0..3 {
        for (number, member) in members.iter().enumerate() {
            shares.window(*member, if number == 0 { 512 } else { 8 }, INTERVAL * round);
        }
    }
    let windows = [members[0], members[99]].map(|member| shares.window(member, 8, 3 * INTERVAL));
    assert_eq!(windows, [LEAST; 2]);
}

proptest! {
    /// Rings that want a share have the same, within 2 %, whoever came and went before; each has something, and the medium is never
    /// idle (`serve` fails otherwise).
    #[test]
    fn rings_share_alike_whatever_their_depths(
        depths in proptest::collection::vec(1usize..=512, 2..12),
        leaves in proptest::collection::vec(any::<bool>(), 12),
    ) {
        let mut medium = Medium::default();
        let numbers: Vec<usize> = depths.iter().map(|depth| medium.join(*depth)).collect();
        medium.serve(500);
        for (number, leaves) in numbers.iter().zip(&leaves).skip(1) {
            if *leaves {
                medium.leave(*number);
            }
        }
        // What they had before is served, and forgotten.
        medium.serve(7000);
        let served = medium.serve(20_000);
        let rings: Vec<&Ring> = medium.rings.iter().flatten().collect();
        let level = level(AT_ONCE, || rings.iter().map(|ring| ring.depth));
        let of_limited = rings.iter().zip(&served).filter(|(ring, _)| ring.depth >= level);
        let limited: Vec<u64> = of_limited.map(|(_, served)| *served).collect();
        if let (Some(least), Some(most)) = (limited.iter().min(), limited.iter().max()) {
            prop_assert!(*least as f64 >= *most as f64 * 0.98, "{served:?}");
            prop_assert!(served.iter().all(|served| served <= most), "{served:?}");
        }
        prop_assert!(served.iter().all(|served| *served > 0), "{served:?}");
        prop_assert_eq!(served.iter().sum::<u64>(), 20_000);
    }
}
