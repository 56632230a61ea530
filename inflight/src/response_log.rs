//! Responses about to be published, recorded in memory that outlives the backend's process.
//!
//! For rings whose responses are written in the order of their requests, each in its request's slot: every request that
//! was taken and not answered is still in the ring, and a successor takes it from there. Only a backend that is killed
//! after writing responses and before publishing them leaves slots that hold neither a request nor a published
//! response. Their content is recorded here and is written again: no request is answered twice, none is left out, and
//! the responses of one packet are published together. Nothing here is shared with the peer.
//!
//! The memory holds a head with the index behind the last response, and a response for each slot.

use crate::log_memory::{self, Format, LogMemory, LogMismatch, compiler_barrier};
use ring_abi::ring::{Back, Fault, Protocol};
use ring_abi::shm::{Memory, Slot};

const MAGIC: u32 = u32::from_le_bytes(*b"xpvJ");
const VERSION: u32 = 1;

/// A ring cannot be resumed from the log of an earlier backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResumeError {
    /// The log is not of this ring, or of another version.
    #[error(transparent)]
    LogMismatch(#[from] LogMismatch),
    /// The ring's indexes do not agree with the log.
    #[error(transparent)]
    Ring(#[from] Fault),
}

/// The response log of one ring.
#[derive(Debug)]
pub struct ResponseLog<P, M>(LogMemory<P, M>);

impl<P: Protocol, M: Memory> ResponseLog<P, M> {
    const STRIDE: usize = P::SLOT.next_multiple_of(8);
    const FORMAT: Format = Format { magic: MAGIC, version: VERSION, stride: Self::STRIDE };

    /// Bytes of memory, in whole pages, for the response log of a ring of so many slots, a power of two.
    pub const fn bytes(slots: u32) -> usize {
        log_memory::bytes(slots, Self::STRIDE)
    }

    /// An empty response log of a ring that was just attached.
    ///
    /// # Errors
    /// [`LogMismatch`] where the memory is too small.
    pub fn start<R: Memory>(memory: M, ring: &Back<P, R>) -> Result<Self, LogMismatch> {
        LogMemory::start(memory, ring.size(), Self::FORMAT, ring.produced(), |_| ()).map(Self)
    }

    /// Resumes from the response log that an earlier backend of `ring` wrote to `memory`: the responses that it had begun
    /// to publish are published, and `ring` continues behind them. The frontend must be notified whether or not it asked.
    ///
    /// # Errors
    /// [`ResumeError::LogMismatch`] where the log is not of this ring or of another version, [`ResumeError::Ring`] where its
    /// index is not within the ring.
    pub fn resume<R: Memory>(memory: M, ring: &mut Back<P, R>) -> Result<Self, ResumeError> {
        let response_log = Self(LogMemory::open(memory, ring.size(), Self::FORMAT)?.0);
        let end = response_log.0.index();
        ring.resume_at(end)?;
        while ring.produced() != end {
            ring.push(&P::read_response(response_log.slot(ring.produced())));
        }
        let _ = ring.commit();
        Ok(response_log)
    }

    /// Records responses and writes them into the ring: once recorded, all of them are written, by this process or by its
    /// successor.
    ///
    /// # Panics
    /// As [`Back::push`].
    #[inline]
    pub fn push<R: Memory>(
        &mut self,
        ring: &mut Back<P, R>,
        responses: impl Iterator<Item = P::Response> + Clone,
    ) {
        let mut end = ring.produced();
        for response in responses.clone() {
            P::write_response(self.slot(end), &response);
            end = end.wrapping_add(1);
        }
        compiler_barrier();
        self.0.set_index(end);
        compiler_barrier();
        responses.for_each(|response| ring.push(&response));
    }

    #[inline]
    fn slot(&self, index: u32) -> Slot<'_> {
        self.0.entry(index & (self.0.entries() - 1), 0, P::SLOT)
    }
}
