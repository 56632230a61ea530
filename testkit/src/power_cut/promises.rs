//! What the user of a disk was told, and whether the disk keeps it after a cut.
//!
//! A flush that is answered promises the writes that were answered before it was sent; a barrier promises all requests that were
//! sent before it, and that none of its own data is on the disk without theirs. A write that was only answered is not promised.

use super::sector::{self, Held, SECTOR};
use std::ops::Range;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Writes a new version of its sectors.
    Write,
    /// The same, after all requests before it and before all after it.
    Barrier,
    /// Makes its sectors zeroes.
    Discard,
    /// Makes durable what was answered.
    Flush,
}

#[derive(Clone, Debug)]
struct Request {
    kind: Kind,
    sectors: Range<u64>,
    sent: u64,
    answered: Option<u64>,
}

/// The requests of a disk that held zeroes at first. No two that are in flight at once have a sector in common.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    requests: Vec<Request>,
}

impl Promises {
    /// Enters a request of these sectors that is sent now; returns its number, below 2³² - 1.
    pub fn sent(&mut self, kind: Kind, sectors: Range<u64>, now: u64) -> usize {
        self.requests.push(Request { kind, sectors, sent: now, answered: None });
        self.requests.len() - 1
    }

    /// Enters that a request was answered: it was carried out.
    pub fn answered(&mut self, number: usize, now: u64) {
        self.requests[number].answered = Some(now);
    }

    /// The data of a write or barrier, by which its sectors are known.
    pub fn data(&self, number: usize) -> Vec<u8> {
        let sectors = self.requests[number].sectors.clone();
        sectors.flat_map(|sector| sector::bytes(sector, version(number))).collect()
    }

    /// When flushes and barriers were answered.
    pub fn flushed(&self) -> impl Iterator<Item = u64> {
        let flushes = self.requests.iter().filter(|r| matches!(r.kind, Kind::Flush | Kind::Barrier));
        flushes.filter_map(|request| request.answered)
    }

    /// Whether a request is in flight that has a sector in common with these.
    pub fn is_in_flight(&self, sectors: &Range<u64>) -> bool {
        let overlaps = |r: &Request| r.sectors.start < sectors.end && sectors.start < r.sectors.end;
        self.requests.iter().any(|request| request.answered.is_none() && overlaps(request))
    }

    /// Checks what a disk holds after a cut at this moment.
    ///
    /// # Errors
    /// Says which sector does not hold what was promised, or has a mix of versions.
    pub fn check(&self, cut: u64, image: &[u8]) -> Result<(), String> {
        self.check_with(cut, image, |sent, least| promised(sent, cut, least))
    }

    /// Checks what a disk holds whose backend was killed at this moment, while the machine lives on: all that was answered.
    ///
    /// # Errors
    /// As [`Promises::check`].
    pub fn check_killed(&self, cut: u64, image: &[u8]) -> Result<(), String> {
        let is_answered = |request: &Request| request.answered.is_some_and(|at| at < cut);
        self.check_with(cut, image, |sent, least| {
            require(sent.iter().enumerate().filter(|(_, request)| is_answered(request)), least);
        })
    }

    fn check_with(
        &self,
        cut: u64,
        image: &[u8],
        promised: impl FnOnce(&[Request], &mut [u64]),
    ) -> Result<(), String> {
        let held: Vec<Held> =
            image.chunks(SECTOR).enumerate().map(|(n, found)| sector::held(n as u64, found)).collect();
        let sent = &self.requests[..self.requests.partition_point(|request| request.sent < cut)];
        let mut least = vec![0; held.len()];
        promised(sent, &mut least);
        if let Some(barrier) = newest_visible_barrier(sent, &held) {
            require(sent[..barrier].iter().enumerate(), &mut least);
        }
        let mut zeroed = vec![0; held.len()];
        let discards = sent.iter().enumerate().filter(|(_, request)| request.kind == Kind::Discard);
        require(discards, &mut zeroed);
        for (number, (held, least)) in held.iter().zip(least).enumerate() {
            let is_kept = match *held {
                Held::Mix => false,
                Held::Zeroes => zeroed[number] >= least,
                Held::Version(version) => version >= least && was_sent(sent, version, number as u64),
            };
            if !is_kept {
                return Err(format!(
                    "sector {number}: {held:?} after a cut at {cut}, expected {least} or newer"
                ));
            }
        }
        Ok(())
    }
}

fn version(number: usize) -> u64 {
    number as u64 + 1
}

fn was_sent(sent: &[Request], version: u64, sector: u64) -> bool {
    let request = usize::try_from(version - 1).ok().and_then(|number| sent.get(number));
    request.is_some_and(|request| request.sectors.contains(&sector))
}

/// Requires of each sector at least the newest version that one of these requests gave it.
fn require<'a>(requests: impl Iterator<Item = (usize, &'a Request)>, least: &mut [u64]) {
    for (number, request) in requests {
        for sector in request.sectors.clone() {
            let least = &mut least[sector as usize];
            *least = version(number).max(*least);
        }
    }
}

/// Requires what flushes and barriers that were answered before the cut promise.
fn promised(sent: &[Request], cut: u64, least: &mut [u64]) {
    let answered = |request: &Request| request.answered.is_some_and(|at| at < cut);
    let flushes = sent.iter().filter(|request| request.kind == Kind::Flush && answered(request));
    let flushed = flushes.map(|flush| flush.sent).max().unwrap_or(0);
    let is_covered = |request: &Request| request.answered.is_some_and(|at| at < flushed);
    require(sent.iter().enumerate().filter(|(_, request)| is_covered(request)), least);
    let barrier = sent.iter().rposition(|request| request.kind == Kind::Barrier && answered(request));
    if let Some(barrier) = barrier {
        require(sent[..=barrier].iter().enumerate(), least);
    }
}

/// The newest barrier of whose data, or of what was written over it later, some is on the disk.
fn newest_visible_barrier(sent: &[Request], held: &[Held]) -> Option<usize> {
    sent.iter().enumerate().rposition(|(number, request)| {
        let is_visible =
            |sector: u64| matches!(held[sector as usize], Held::Version(v) if v >= version(number));
        request.kind == Kind::Barrier && request.sectors.clone().any(is_visible)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The image of a disk with these versions.
    fn image(versions: &[u64]) -> Vec<u8> {
        let sectors = versions.iter().enumerate().map(|(number, version)| match version {
            0 => [0; SECTOR],
            version => sector::bytes(number as u64, *version),
        });
        sectors.flatten().collect()
    }

    /// Version 1 of two sectors, a flush, and version 3 of the second, at 1 to 6.
    fn flushed() -> Promises {
        let mut promises = Promises::default();
        for (n, (kind, sectors)) in
            [(Kind::Write, 0..2), (Kind::Flush, 0..0), (Kind::Write, 1..2)].into_iter().enumerate()
        {
            let number = promises.sent(kind, sectors, 2 * n as u64 + 1);
            promises.answered(number, 2 * n as u64 + 2);
        }
        promises
    }

    #[test]
    fn answered_flush_promises_what_was_answered_before_it() {
        let promises = flushed();
        for kept in [[1, 1], [1, 3]] {
            assert_eq!(promises.check(7, &image(&kept)), Ok(()));
        }
        for broken in [[0, 1], [1, 0], [1, 2], [4, 1]] {
            promises.check(7, &image(&broken)).unwrap_err();
        }
        // It is not answered yet.
        assert_eq!(promises.check(4, &image(&[0, 1])), Ok(()));
        let why = promises.check(4, &image(&[0, 3])).unwrap_err();
        assert_eq!(why, "sector 1: Version(3) after a cut at 4, expected 0 or newer");
    }

    #[test]
    fn killed_backend_has_kept_what_was_answered() {
        let promises = flushed();
        assert_eq!(promises.check_killed(7, &image(&[1, 3])), Ok(()));
        promises.check_killed(7, &image(&[1, 1])).unwrap_err();
        // It is not answered yet.
        assert_eq!(promises.check_killed(6, &image(&[1, 1])), Ok(()));
        promises.check_killed(6, &image(&[0, 1])).unwrap_err();
    }

    #[test]
    fn barrier_is_not_visible_without_what_was_sent_before_it() {
        let mut promises = Promises::default();
        promises.sent(Kind::Write, 0..1, 1);
        let barrier = promises.sent(Kind::Barrier, 1..3, 2);
        for kept in [[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 2]] {
            assert_eq!(promises.check(3, &image(&kept)), Ok(()));
        }
        promises.check(3, &image(&[0, 2, 2])).unwrap_err();
        promises.check(3, &image(&[0, 0, 2])).unwrap_err();
        promises.answered(barrier, 3);
        promises.check(4, &image(&[1, 2, 0])).unwrap_err();
        assert_eq!(promises.check(4, &image(&[1, 2, 2])), Ok(()));
    }

    #[test]
    fn zeroes_are_as_new_as_the_last_discard() {
        let mut promises = flushed();
        let discard = promises.sent(Kind::Discard, 0..1, 7);
        assert_eq!(promises.check(8, &image(&[0, 1])), Ok(()));
        promises.check(8, &image(&[0, 0])).unwrap_err();
        promises.answered(discard, 8);
        let flush = promises.sent(Kind::Flush, 0..0, 9);
        promises.answered(flush, 10);
        assert_eq!(promises.check(11, &image(&[0, 3])), Ok(()));
        promises.check(11, &image(&[1, 3])).unwrap_err();
    }
}
