//! How many operations each ring may have at a medium that several guests use, so that each guest gets as much of it as the others,
//! whatever the depths of its rings, and however many it has.
//!
//! A medium serves operations in the order in which it is given them, or nearly: a ring's share is that of its operations among all that
//! are there. So all guests that want more than a share have the same number there, of [`AT_ONCE`] in all; those that want less have
//! what they want, and the others divide the rest (max-min fairness); and so do the rings of one guest. Who wants nothing for two periods is not counted. A ring may always
//! have one operation, so that it need not be woken: its own completions bring it here again.

use std::time::Duration;

use ring_abi::DomId;

/// Operations of all rings together at a medium that more are wanted of: enough to keep one busy that serves many at once.
pub const AT_ONCE: usize = 64;

/// How long what a ring wanted is counted, at least; twice as long at most. It hides the gaps in which a frontend has taken its
/// responses and not sent its next requests.
pub const PERIOD: Duration = Duration::from_millis(10);

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
}

impl Shares {
    /// A ring of that guest, which uses the medium from now on.
    pub fn join(&mut self, owner: DomId) -> Member {
        let free = self.members.iter().position(Option::is_none);
        let number = free.unwrap_or_else(|| {
            self.members.push(None);
            self.members.len() - 1
        });
        self.members[number] = Some(Wanted { owner, now: 0, period: 0, most: 0, before: 0 });
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
        let owner = own.owner;
        let active = self.members.iter().flatten().map(|ring| (ring.owner, ring.at(period)));
        let mut active: Vec<(DomId, usize)> = active.filter(|(_, most)| *most > 0).collect();
        active.sort_unstable_by_key(|(owner, _)| *owner);
        let guests: Vec<usize> = active
            .chunk_by(|(one, _), (other, _)| one == other)
            .map(|rings| rings.iter().map(|(_, most)| most).sum())
            .collect();
        if guests.len() < 2 {
            return usize::MAX;
        }
        let of_guest = level(AT_ONCE, || guests.iter().copied());
        let of_own = || active.iter().filter(|(other, _)| *other == owner).map(|(_, most)| *most);
        level(of_guest, of_own).max(1)
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
