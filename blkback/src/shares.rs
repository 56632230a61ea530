//! How many operations each ring may have at a medium that several guests use, so that each guest gets as much of it as the others,
//! whatever the depths of its rings, and however many it has.
//!
//! A medium serves operations in the order in which it is given them, or nearly: a ring's share is that of its operations among all that
//! are there. So all guests that want more than a share have the same number there, of [`AT_ONCE`] in all, or of [`LEAST`] for each guest if
//! that is more; those that want less have
//! what they want, and the others divide the rest (max-min fairness); and so do the rings of one guest. Who wants nothing for two periods is not counted. A ring may always
//! have one operation, so that it need not be woken: its own completions bring it here again.

use std::time::Duration;

use ring_abi::DomId;

/// Operations of all rings together at a medium that more are wanted of: enough to keep one busy that serves many at once.
pub const AT_ONCE: usize = 64;

/// Operations that each guest may have there however many guests there are: one at a time would cost each its batches, and the medium
/// what it serves at once.
pub const LEAST: usize = 4;

/// How long what a ring wanted is counted, at least; twice as long at most. It hides the gaps in which a frontend has taken its
/// responses and not sent its next requests.
pub const PERIOD: Duration = Duration::from_millis(10);

/// Of more rings than these, shares are divided anew once in [`INTERVAL`] only: it takes as long as there are rings.
const FEW: usize = 16;

/// See [`FEW`].
const INTERVAL: Duration = Duration::from_millis(1);

/// A ring of the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member(usize);

/// What one ring wants.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    owner: DomId,
    /// What is wanted since the ring was last here.
    now: usize,
    /// The period of `most`.
    period: u128,
    /// The most operations wanted at once in that period.
    most: usize,
    /// In the one before it.
    before: usize,
    /// Its part, as it was divided last.
    window: usize,
}

/// The rings of one medium.
///
/// ```
/// use blkback::shares::{AT_ONCE, Shares};
/// use ring_abi::DomId;
/// use std::time::Duration;
///
/// let mut shares = Shares::default();
/// let hog = shares.join(DomId(1));
/// assert_eq!(shares.window(hog, 512, Duration::ZERO), usize::MAX);
/// let other = shares.join(DomId(2));
/// assert_eq!(shares.window(other, 100, Duration::ZERO), AT_ONCE / 2);
/// assert_eq!(shares.window(hog, 512, Duration::ZERO), AT_ONCE / 2);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Shares {
    members: Vec<Option<Wanted>>,
    /// When shares were divided last.
    divided: Duration,
    /// The rings that want something, by guest: the guest, what is wanted, and the ring. Kept for its memory.
    active: Vec<(DomId, usize, usize)>,
}

impl Shares {
    /// A ring of that guest, which uses the medium from now on.
    pub fn join(&mut self, owner: DomId) -> Member {
        let free = self.members.iter().position(Option::is_none);
        let number = free.unwrap_or_else(|| {
            self.members.push(None);
            self.members.len() - 1
        });
        self.members[number] = Some(Wanted { owner, now: 0, period: 0, most: 0, before: 0, window: LEAST });
        Member(number)
    }

    /// The ring does not use it any more.
    pub fn leave(&mut self, member: Member) {
        self.members[member.0] = None;
        while self.members.last().is_some_and(Option::is_none) {
            self.members.pop();
        }
    }

    /// The most operations that a ring may have at the medium now, one at least. It has there, or holds back, as many as are
    /// `wanted`; to be called whenever that has changed. `now` is the time since any moment, the same for all rings.
    pub fn window(&mut self, member: Member, wanted: usize, now: Duration) -> usize {
        let period = now.as_nanos() / PERIOD.as_nanos();
        let Some(own) = self.members.get_mut(member.0).and_then(Option::as_mut) else { return usize::MAX };
        own.count(wanted, period);
        if self.members.len() <= FEW || now.saturating_sub(self.divided) >= INTERVAL {
            self.divided = now;
            self.divide(period);
        }
        self.members[member.0].map_or(usize::MAX, |own| own.window)
    }

    /// Divides what the rings may have at the medium among them.
    fn divide(&mut self, period: u128) {
        let Shares { members, active, .. } = self;
        active.clear();
        let rings = members.iter().enumerate().filter_map(|(number, ring)| Some((number, ring.as_ref()?)));
        let wanted = rings.map(|(number, ring)| (ring.owner, ring.at(period), number));
        active.extend(wanted.filter(|(_, most, _)| *most > 0));
        active.sort_unstable_by_key(|(owner, ..)| *owner);
        let guests = || active.chunk_by(|(one, ..), (other, ..)| one == other);
        let of_each = || guests().map(|rings| rings.iter().map(|(_, most, _)| most).sum());
        let of_guest = match guests().count() {
            0 | 1 => usize::MAX,
            count => level(AT_ONCE.max(LEAST * count), of_each),
        };
        members.iter_mut().flatten().for_each(|ring| ring.window = of_guest);
        for rings in active.chunk_by(|(one, ..), (other, ..)| one == other) {
            let window = level(of_guest, || rings.iter().map(|(_, most, _)| *most)).max(1);
            for (_, _, number) in rings {
                if let Some(ring) = &mut members[*number] {
                    ring.window = window;
                }
            }
        }
    }
}

impl Wanted {
    fn count(&mut self, wanted: usize, period: u128) {
        if period > self.period {
            self.before = if period == self.period + 1 { self.most } else { 0 };
            self.most = 0;
            self.period = period;
        }
        self.most = self.most.max(wanted).max(self.now);
        self.now = wanted;
    }

    /// The most that was wanted in that period and in the one before it.
    fn at(&self, period: u128) -> usize {
        self.now.max(match period.saturating_sub(self.period) {
            0 => self.most.max(self.before),
            1 => self.most,
            _ => 0,
        })
    }
}

/// The number that each has at most, so that all together have no more than `total`; without limit if they want no more.
fn level<I: Iterator<Item = usize>>(total: usize, wanted: impl Fn() -> I) -> usize {
    let mut level = 0;
    loop {
        let below: usize = wanted().filter(|most| *most <= level).sum();
        let above = wanted().filter(|most| *most > level).count();
        if above == 0 {
            return usize::MAX;
        }
        // It only grows: those below it leave more to the others.
        let next = total.saturating_sub(below) / above;
        if next <= level {
            return level;
        }
        level = next;
    }
}

#[cfg(test)]
mod tests;
