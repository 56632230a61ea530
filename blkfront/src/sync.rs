//! Blocking calls, which copy bytes in or out and use as many requests as needed.

use ring_abi::PAGE_SIZE;
use ring_abi::blkif::SECTOR;

use crate::buffer::Buffer;
use crate::device::Disk;
use crate::error::{Error, Result};
use crate::handshake::Negotiated;
use crate::queue::Operation;
use crate::request::{Completion, Request};
use crate::split::{Chunk, MAX_REQUEST_BYTES, split};

/// The most bytes of buffers kept for later calls.
const SPARE_BYTES: usize = 32 * MAX_REQUEST_BYTES;

impl Disk {
    /// Reads bytes from `offset` on; offset and length are multiples of the sector size.
    ///
    /// # Errors
    /// [`Error::Alignment`], [`Error::Range`] or [`Error::InFlight`] before any request is made; otherwise the error of the first request
    /// that failed, while other requests may have been carried out.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        let max = self.request_bytes(bytes.len())?;
        let mut chunks = split(offset, bytes.len(), max);
        let next = |disk: &mut Disk| {
            if chunks.len() == 0 {
                return Ok(None);
            }
            let Some(buffer) = disk.take_spare(max)? else { return Ok(None) };
            Ok(chunks.next().map(|chunk| request(Operation::Read, &chunk, buffer)))
        };
        self.run_all(next, |request, buffer| {
            let start = (request.sector * SECTOR as u64 - offset) as usize;
            buffer.copy_to(&mut bytes[start..start + request.bytes]);
        })
    }

    /// Writes bytes from `offset` on; offset and length are multiples of the sector size.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], and as [`Disk::read_at`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.connected_info()?.read_only {
            return Err(Error::ReadOnly);
        }
        self.check(offset, bytes.len())?;
        let max = self.request_bytes(bytes.len())?;
        let mut chunks = split(offset, bytes.len(), max);
        let next = |disk: &mut Disk| {
            if chunks.len() == 0 {
                return Ok(None);
            }
            let Some(buffer) = disk.take_spare(max)? else { return Ok(None) };
            Ok(chunks.next().map(|chunk| {
                buffer.fill(&bytes[chunk.bytes.clone()]);
                request(Operation::Write, &chunk, buffer)
            }))
        };
        self.run_all(next, |_, _| ())
    }

    /// Makes all completed writes durable; returns at once if the backend has no cache to flush.
    ///
    /// # Errors
    /// [`Error::Status`] if the backend fails the flush, and as [`Disk::wait`].
    pub fn flush(&mut self) -> Result<()> {
        if !self.connected_info()?.flush {
            return Ok(());
        }
        let mut flush = Some(Request::flush(0));
        self.run_all(|_| Ok(flush.take()), |_, _| ())
    }

    /// Discards bytes from `offset` on, which are no longer in use: what they read as is undefined until they are written. Offset
    /// and length are multiples of the sector size; extents that are covered in part ([`DiscardLimits`](crate::DiscardLimits)) may stay allocated.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::NoDiscard`] if the backend does not offer it; and as [`Disk::read_at`].
    pub fn discard(&mut self, offset: u64, bytes: usize) -> Result<()> {
        let info = self.connected_info()?;
        if info.read_only {
            return Err(Error::ReadOnly);
        }
        if info.discard.is_none() {
            return Err(Error::NoDiscard);
        }
        self.check(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let mut discard = Some(Request::discard(0, offset / SECTOR as u64, bytes));
        self.run_all(|_| Ok(discard.take()), |_, _| ())
    }

    fn check(&self, offset: u64, bytes: usize) -> Result<()> {
        let Negotiated { sectors, sector_size, .. } = *self.connected_info()?;
        let size = sectors.saturating_mul(SECTOR as u64);
        if !offset.is_multiple_of(sector_size.into()) || !bytes.is_multiple_of(sector_size as usize) {
            return Err(Error::Alignment { offset, bytes, sector_size });
        }
        if offset.checked_add(bytes as u64).is_none_or(|end| end > size) {
            return Err(Error::Range { offset, bytes, size });
        }
        Ok(())
    }

    fn connected_info(&self) -> Result<&Negotiated> {
        self.info().ok_or(Error::Closed)
    }

    /// How long the requests of a call for so many bytes are: as long as the backend supports, if the domain can grant the pages of
    /// one of them.
    fn request_bytes(&mut self, bytes: usize) -> Result<usize> {
        let max = self.max_request_bytes();
        if bytes <= MAX_REQUEST_BYTES || max == MAX_REQUEST_BYTES {
            return Ok(MAX_REQUEST_BYTES);
        }
        let one = bytes.next_multiple_of(PAGE_SIZE).min(max);
        match self.take_spare(one) {
            Ok(buffer) => {
                self.spare.extend(buffer);
                Ok(one)
            }
            Err(error) if error.is_out_of_pages() => Ok(MAX_REQUEST_BYTES),
            Err(error) => Err(error),
        }
    }

    /// Takes a buffer of so many bytes at least; `None` if the domain can grant no more pages now, and requests in flight
    /// will give some back.
    fn take_spare(&mut self, bytes: usize) -> Result<Option<Buffer>> {
        if let Some(number) = self.spare.iter().position(|buffer| buffer.capacity() >= bytes) {
            return Ok(Some(self.spare.swap_remove(number)));
        }
        match self.buffer(bytes) {
            Err(error) if error.is_out_of_pages() && self.in_flight() > 0 => Ok(None),
            // Smaller ones may have the pages.
            Err(error) if error.is_out_of_pages() && !self.spare.is_empty() => {
                self.spare.clear();
                self.buffer(bytes).map(Some)
            }
            buffer => buffer.map(Some),
        }
    }

    /// Carries out the requests of `next`, as many at once as the ring has slots and the domain has pages, and waits for all
    /// of them. `next` returns `None` after the last, and where it has to wait for one in flight.
    fn run_all(
        &mut self,
        mut next: impl FnMut(&mut Disk) -> Result<Option<Request>>,
        mut finish: impl FnMut(&Request, &Buffer),
    ) -> Result<()> {
        // Their completions are the caller's.
        if self.in_flight() > 0 {
            return Err(Error::InFlight { requests: self.in_flight() });
        }
        let mut rejected = None;
        let mut first_error = Ok(());
        let mut completions = Vec::new();
        loop {
            while let Some(request) = match rejected.take() {
                Some(request) => Some(request),
                None => next(self).unwrap_or_else(|error| {
                    first_error = std::mem::replace(&mut first_error, Ok(())).and(Err(error));
                    None
                }),
            } {
                if let Err(request) = self.submit(request) {
                    rejected = Some(request);
                    break;
                }
            }
            if rejected.is_some() && self.is_closed() {
                return Err(Error::Closed);
            }
            if self.in_flight() == 0 && rejected.is_none() {
                return first_error;
            }
            self.wait(&mut completions, None)?;
            for completion in completions.drain(..) {
                let outcome = completion.check();
                self.finish_one(completion, outcome.is_ok(), &mut finish);
                first_error = first_error.and(outcome);
            }
        }
    }

    fn finish_one(
        &mut self,
        mut completion: Completion,
        ok: bool,
        finish: &mut impl FnMut(&Request, &Buffer),
    ) {
        let Some(buffer) = completion.request.buffer.take() else { return };
        if ok {
            finish(&completion.request, &buffer);
        }
        let kept: usize = self.spare.iter().map(Buffer::capacity).sum();
        if kept + buffer.capacity() <= SPARE_BYTES {
            self.spare.push(buffer);
        }
    }
}

fn request(operation: Operation, chunk: &Chunk, buffer: Buffer) -> Request {
    let sector = chunk.sector();
    Request { token: 0, operation, sector, bytes: chunk.bytes.len(), buffer: Some(buffer) }
}
