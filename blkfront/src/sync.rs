//! Calls that copy and wait: bytes in, bytes out, in as many requests as they take.

use crate::buffer::{Buffer, MOST_BYTES};
use crate::device::{Completion, Disk, Request};
use crate::error::{Error, Result};
use crate::queue::Op;

/// Buffers kept for the next call.
const SPARE: usize = 32;

/// Where bytes come from or go to.
enum Bytes<'o> {
    In(&'o mut [u8]),
    Out(&'o [u8]),
}

impl Bytes<'_> {
    fn len(&self) -> usize {
        match self {
            Bytes::In(bytes) => bytes.len(),
            Bytes::Out(bytes) => bytes.len(),
        }
    }
}

impl Disk {
    /// Reads bytes from `offset` on; both are multiples of the sector size.
    ///
    /// # Errors
    /// The first request's that failed; some bytes may then have been read all the same.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.transfer(Op::Read, offset, Bytes::In(bytes))
    }

    /// Writes bytes from `offset` on; both are multiples of the sector size.
    ///
    /// # Errors
    /// The first request's that failed; some bytes may then have been written all the same.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.info().read_only {
            return Err(Error::ReadOnly);
        }
        self.transfer(Op::Write, offset, Bytes::Out(bytes))
    }

    /// Makes all writes durable that are completed; at once where the backend has no cache to flush.
    ///
    /// # Errors
    /// The backend's answer.
    pub fn flush(&mut self) -> Result<()> {
        if !self.info().flush {
            return Ok(());
        }
        self.run(1, |_, token| Ok(Request::flush(token)), |_, _| ())
    }

    fn transfer(&mut self, op: Op, offset: u64, mut bytes: Bytes<'_>) -> Result<()> {
        self.check(offset, bytes.len())?;
        let count = bytes.len().div_ceil(MOST_BYTES);
        let len = bytes.len();
        let range = |token: u64| {
            let start = token as usize * MOST_BYTES;
            start..(start + MOST_BYTES).min(len)
        };
        let source = match &bytes {
            Bytes::Out(bytes) => Some(*bytes),
            Bytes::In(_) => None,
        };
        let make = |disk: &mut Disk, token| {
            let range = range(token);
            let buffer = disk.take_spare()?;
            if let Some(source) = source {
                buffer.fill(&source[range.clone()]);
            }
            let sector = (offset + range.start as u64) / 512;
            Ok(Request { token, op, sector, bytes: range.len(), buffer: Some(buffer) })
        };
        let target = match &mut bytes {
            Bytes::In(bytes) => Some(&mut **bytes),
            Bytes::Out(_) => None,
        };
        let mut target = target;
        self.run(count as u64, make, |token, buffer| {
            if let Some(target) = &mut target {
                buffer.copy_to(&mut target[range(token)]);
            }
        })
    }

    fn check(&self, offset: u64, bytes: usize) -> Result<()> {
        let info = self.info();
        let (unit, size) = (info.sector_size, info.sectors.saturating_mul(512));
        if !offset.is_multiple_of(unit.into()) || !bytes.is_multiple_of(unit as usize) {
            return Err(Error::Alignment { offset, bytes, sector_size: unit });
        }
        if offset.checked_add(bytes as u64).is_none_or(|end| end > size) {
            return Err(Error::Range { offset, bytes, size });
        }
        Ok(())
    }

    fn take_spare(&mut self) -> Result<Buffer> {
        self.spare.pop().map_or_else(|| self.buffer(MOST_BYTES), Ok)
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
