//! Calls that copy and wait: octets in, octets out, in as many requests as they take.

use crate::buffer::{Buffer, MOST_OCTETS};
use crate::device::{Completion, Disk, Request};
use crate::error::{Error, Result};
use crate::queue::Op;

/// Buffers kept for the next call.
const SPARE: usize = 32;

/// Where octets come from or go to.
enum Octets<'o> {
    In(&'o mut [u8]),
    Out(&'o [u8]),
}

impl Octets<'_> {
    fn len(&self) -> usize {
        match self {
            Octets::In(octets) => octets.len(),
            Octets::Out(octets) => octets.len(),
        }
    }
}

impl Disk {
    /// Reads octets from `offset` on; both are multiples of the sector size.
    ///
    /// # Errors
    /// The first request's that failed; some octets may then have been read all the same.
    pub fn read_at(&mut self, offset: u64, octets: &mut [u8]) -> Result<()> {
        self.transfer(Op::Read, offset, Octets::In(octets))
    }

    /// Writes octets from `offset` on; both are multiples of the sector size.
    ///
    /// # Errors
    /// The first request's that failed; some octets may then have been written all the same.
    pub fn write_at(&mut self, offset: u64, octets: &[u8]) -> Result<()> {
        if self.info().read_only {
            return Err(Error::ReadOnly);
        }
        self.transfer(Op::Write, offset, Octets::Out(octets))
    }

    /// Makes all writes durable that are completed; at once where the back end has no cache to flush.
    ///
    /// # Errors
    /// The back end's answer.
    pub fn flush(&mut self) -> Result<()> {
        if !self.info().flush {
            return Ok(());
        }
        self.run(1, |_, token| Ok(Request::flush(token)), |_, _| ())
    }

    fn transfer(&mut self, op: Op, offset: u64, mut octets: Octets<'_>) -> Result<()> {
        self.check(offset, octets.len())?;
        let count = octets.len().div_ceil(MOST_OCTETS);
        let len = octets.len();
        let range = |token: u64| {
            let start = token as usize * MOST_OCTETS;
            start..(start + MOST_OCTETS).min(len)
        };
        let source = match &octets {
            Octets::Out(octets) => Some(*octets),
            Octets::In(_) => None,
        };
        let make = |disk: &mut Disk, token| {
            let range = range(token);
            let buffer = disk.take_spare()?;
            if let Some(source) = source {
                buffer.fill(&source[range.clone()]);
            }
            let sector = (offset + range.start as u64) / 512;
            Ok(Request { token, op, sector, octets: range.len(), buffer: Some(buffer) })
        };
        let target = match &mut octets {
            Octets::In(octets) => Some(&mut **octets),
            Octets::Out(_) => None,
        };
        let mut target = target;
        self.run(count as u64, make, |token, buffer| {
            if let Some(target) = &mut target {
                buffer.copy_to(&mut target[range(token)]);
            }
        })
    }

    fn check(&self, offset: u64, octets: usize) -> Result<()> {
        let info = self.info();
        let (unit, size) = (info.sector_size, info.sectors.saturating_mul(512));
        if !offset.is_multiple_of(unit.into()) || !octets.is_multiple_of(unit as usize) {
            return Err(Error::Alignment { offset, octets, sector_size: unit });
        }
        if offset.checked_add(octets as u64).is_none_or(|end| end > size) {
            return Err(Error::Range { offset, octets, size });
        }
        Ok(())
    }

    fn take_spare(&mut self) -> Result<Buffer> {
        self.spare.pop().map_or_else(|| self.buffer(MOST_OCTETS), Ok)
    }

    /// Carries out requests 0 to `count`, as many at once as there is room for, and waits for all of them.
    fn run(
        &mut self,
        count: u64,
        mut make: impl FnMut(&mut Disk, u64) -> Result<Request>,
        mut finish: impl FnMut(u64, &Buffer),
    ) -> Result<()> {
        let (mut next, mut over) = (0, 0);
        let mut held = None;
        let mut first_error = Ok(());
        let mut done = Vec::new();
        while over < count {
            while held.is_some() || next < count {
                if self.is_closed() {
                    return Err(Error::Closed);
                }
                let request = match held.take() {
                    Some(request) => request,
                    None => make(self, next)?,
                };
                if let Err(back) = self.submit(request) {
                    held = Some(back);
                    break;
                }
                next += 1;
            }
            self.wait(&mut done, None)?;
            for completion in done.drain(..) {
                over += 1;
                let outcome = completion.check();
                self.finish_one(completion, outcome.is_ok(), &mut finish);
                first_error = first_error.and(outcome);
            }
        }
        first_error
    }

    fn finish_one(&mut self, completion: Completion, ok: bool, finish: &mut impl FnMut(u64, &Buffer)) {
        let Some(buffer) = completion.request.buffer else { return };
        if ok {
            finish(completion.request.token, &buffer);
        }
        if self.spare.len() < SPARE {
            self.spare.push(buffer);
        }
    }
}
