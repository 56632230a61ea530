//! The writes, discards and flushes of a disk, and what it may hold after a cut.
//!
//! A flush covers what had completed when it was submitted. Of two writes to a sector the later one wins if it was submitted when
//! the other had completed; otherwise either may. So a sector holds, after a cut, one of the writes that were submitted before, but
//! none that was over when a covered one was submitted; and what it held at first unless one is covered.

use super::sector::SECTOR;
use rand::RngExt;
use rand::rngs::SmallRng;
use std::ops::Range;

/// What an operation does to the disk.
#[derive(Clone, Debug)]
pub enum Change {
    /// Writes whole sectors.
    Write {
        /// The first one.
        sector: u64,
        /// Their bytes.
        data: Vec<u8>,
    },
    /// Makes these sectors zeroes.
    Discard(Range<u64>),
    /// Makes all that was written durable.
    Flush,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Logged {
    /// What it does.
    pub change: Change,
    /// When the disk was given it.
    pub submitted: u64,
    /// When it was handed back as carried out.
    pub completed: Option<u64>,
}

/// All operations of a disk that held zeroes at first, in the order in which they were submitted.
#[derive(Clone, Debug, Default)]
pub struct WriteLog {
    /// Sectors of the disk.
    pub sectors: u64,
    /// The operations.
    pub operations: Vec<Logged>,
}

/// Which of the writes that no flush covers are on the disk after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// None.
    None,
    /// All.
    All,
    /// Some, each whole.
    Requests,
    /// Some sectors of some.
    Sectors,
}

impl Choice {
    /// All of them.
    pub const EVERY: [Choice; 4] = [Choice::None, Choice::All, Choice::Requests, Choice::Sectors];
}

impl Logged {
    fn sectors(&self) -> Range<u64> {
        match &self.change {
            Change::Write { sector, data } => *sector..sector + (data.len() / SECTOR) as u64,
            Change::Discard(sectors) => sectors.clone(),
            Change::Flush => 0..0,
        }
    }

    /// The bytes that it leaves in a sector; zeroes if `None`.
    fn content(&self, at: u64) -> Option<&[u8]> {
        match &self.change {
            Change::Write { sector, data } => data[(at - sector) as usize * SECTOR..].get(..SECTOR),
            _ => None,
        }
    }
}

impl WriteLog {
    /// When the flushes have completed, by which writes become durable.
    pub fn flushed(&self) -> impl Iterator<Item = u64> {
        let flushes = self.operations.iter().filter(|logged| matches!(logged.change, Change::Flush));
        flushes.filter_map(|flush| flush.completed)
    }

    /// What was completed before this moment is durable at the cut.
    fn durable_until(&self, cut: u64) -> u64 {
        let flushes = self.operations.iter().filter(|logged| matches!(logged.change, Change::Flush));
        let completed = flushes.filter(|flush| flush.completed.is_some_and(|at| at < cut));
        completed.map(|flush| flush.submitted).max().unwrap_or(0)
    }

    /// For each sector the operations of which it may hold the content after a cut, in the order of their submission, and `None` for
    /// what it held at first.
    fn possible(&self, cut: u64) -> Vec<Vec<Option<usize>>> {
        let durable = self.durable_until(cut);
        let ended = |logged: &Logged| logged.completed.unwrap_or(u64::MAX);
        let submitted =
            || self.operations.iter().enumerate().take_while(|(_, logged)| logged.submitted < cut);
        // When the last write that is covered was submitted.
        let mut last = vec![0; self.sectors as usize];
        for (_, logged) in submitted().filter(|(_, logged)| ended(logged) < durable) {
            logged.sectors().for_each(|sector| last[sector as usize] = logged.submitted);
        }
        let initial = |last: &u64| if *last == 0 { vec![None] } else { Vec::new() };
        let mut possible: Vec<_> = last.iter().map(initial).collect();
        for (number, logged) in submitted() {
            for sector in logged.sectors() {
                if ended(logged) > last[sector as usize] {
                    possible[sector as usize].push(Some(number));
                }
            }
        }
        possible
    }

    /// One of the images that the disk may hold after a cut at this moment.
    pub fn image(&self, cut: u64, choice: Choice, random: &mut SmallRng) -> Vec<u8> {
        let mut image = vec![0; self.sectors as usize * SECTOR];
        let chosen: Vec<bool> = self.operations.iter().map(|_| random.random()).collect();
        for (sector, possible) in self.possible(cut).iter().enumerate() {
            let held = match choice {
                Choice::None => possible.first(),
                Choice::All => possible.last(),
                Choice::Requests => {
                    let is_chosen = |held: &&Option<usize>| held.is_some_and(|number| chosen[number]);
                    possible.iter().rfind(is_chosen).or(possible.first())
                }
                Choice::Sectors => possible.get(random.random_range(0..possible.len())),
            };
            let operation = held.copied().flatten().map(|number| &self.operations[number]);
            if let Some(content) = operation.and_then(|logged| logged.content(sector as u64)) {
                image[sector * SECTOR..][..SECTOR].copy_from_slice(content);
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::generator;
    use std::collections::BTreeSet;

    fn write(sector: u64, bytes: &[u8], submitted: u64, completed: Option<u64>) -> Logged {
        let data = bytes.iter().flat_map(|byte| [*byte; SECTOR]).collect();
        Logged { change: Change::Write { sector, data }, submitted, completed }
    }

    fn flush(submitted: u64, completed: Option<u64>) -> Logged {
        Logged { change: Change::Flush, submitted, completed }
    }

    /// All that a disk of two sectors may hold, each as its first byte.
    fn held(operations: Vec<Logged>, cut: u64) -> BTreeSet<[u8; 2]> {
        let log = WriteLog { sectors: 2, operations };
        let mut random = generator(1);
        let choices = (0..200).map(|n| Choice::EVERY[n % 4]);
        let images = choices.map(|choice| log.image(cut, choice, &mut random));
        images.map(|image| [image[0], image[SECTOR]]).collect()
    }

    #[test]
    fn what_no_flush_covers_is_there_in_any_part() {
        let unflushed = vec![write(0, &[1, 2], 1, Some(2))];
        assert_eq!(held(unflushed.clone(), 9), [[0, 0], [0, 2], [1, 0], [1, 2]].into());
        assert_eq!(held(unflushed, 1), [[0, 0]].into());
        let in_flight = vec![write(0, &[1, 2], 1, Some(3)), flush(2, Some(4))];
        assert_eq!(held(in_flight, 9).len(), 4);
    }

    #[test]
    fn what_a_completed_flush_covers_is_there() {
        let log = vec![write(0, &[1, 2], 1, Some(2)), flush(3, Some(5)), write(1, &[3], 4, Some(6))];
        assert_eq!(held(log.clone(), 5).len(), 6);
        assert_eq!(held(log, 9), [[1, 2], [1, 3]].into());
    }

    #[test]
    fn later_write_does_not_give_way_to_an_earlier_one() {
        let log = vec![write(0, &[1], 1, Some(2)), write(0, &[2], 3, Some(4)), flush(5, Some(6))];
        assert_eq!(held(log, 9), [[2, 0]].into());
        let at_once = vec![write(0, &[1], 1, Some(3)), write(0, &[2], 2, Some(4)), flush(5, Some(6))];
        assert_eq!(held(at_once, 9), [[1, 0], [2, 0]].into());
        let unfinished = vec![write(0, &[1], 1, None), write(0, &[2], 2, Some(4)), flush(5, Some(6))];
        assert_eq!(held(unfinished, 9), [[1, 0], [2, 0]].into());
    }

    #[test]
    fn discarded_sectors_are_zeroes_once_a_flush_covers_that() {
        let discard = Logged { change: Change::Discard(0..1), submitted: 4, completed: Some(5) };
        let log = vec![write(0, &[1, 2], 1, Some(2)), flush(3, Some(4)), discard, flush(6, Some(7))];
        assert_eq!(held(log.clone(), 7), [[0, 2], [1, 2]].into());
        assert_eq!(held(log, 9), [[0, 2]].into());
    }
}
