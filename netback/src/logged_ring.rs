//! A ring that may have a response log: what both rings of a vif need to be gone on with by another process.

use ring_abi::ring::response_log::{LogMismatch, ResponseLog, ResumeError};
use ring_abi::ring::{Back, BadMemory, Protocol};
use ring_abi::shm::Memory;
use std::ops::{Deref, DerefMut};

/// The backend's half of a ring, and its response log if it has one. Responses are pushed here, or the response log
/// misses them.
#[derive(Debug)]
pub struct LoggedRing<P, M, K> {
    ring: Back<P, M>,
    response_log: Option<ResponseLog<P, K>>,
}

impl<P: Protocol, M: Memory, K: Memory> LoggedRing<P, M, K> {
    pub(crate) fn attach(memory: M) -> Result<Self, BadMemory> {
        Ok(Self { ring: Back::attach(memory)?, response_log: None })
    }

    /// Bytes of a response log of this ring.
    pub fn log_bytes(&self) -> usize {
        ResponseLog::<P, K>::bytes(self.ring.size())
    }

    /// Begins a response log in `memory`.
    ///
    /// # Errors
    /// [`LogMismatch`] where it is too small.
    pub fn record(&mut self, memory: K) -> Result<(), LogMismatch> {
        self.response_log = Some(ResponseLog::start(memory, &self.ring)?);
        Ok(())
    }

    /// Goes on where an earlier backend has left the response log in `memory`: what it began to answer is answered,
    /// and everything behind that is taken again. The guest is to be notified whether or not it asked.
    ///
    /// # Errors
    /// [`ResumeError`]: it is not this ring's, or the ring not as it was.
    pub fn resume(&mut self, memory: K) -> Result<(), ResumeError> {
        self.response_log = Some(ResponseLog::resume(memory, &mut self.ring)?);
        Ok(())
    }

    /// Whether there is a response log: responses come in the order of their requests then.
    #[inline]
    pub(crate) fn is_logged(&self) -> bool {
        self.response_log.is_some()
    }

    /// Writes responses that belong together.
    #[inline]
    pub(crate) fn push_all(&mut self, responses: impl Iterator<Item = P::Response> + Clone) {
        match &mut self.response_log {
            None => responses.for_each(|response| self.ring.push(&response)),
            Some(response_log) => response_log.push(&mut self.ring, responses),
        }
    }
}

impl<P, M, K> Deref for LoggedRing<P, M, K> {
    type Target = Back<P, M>;

    #[inline]
    fn deref(&self) -> &Back<P, M> {
        &self.ring
    }
}

impl<P, M, K> DerefMut for LoggedRing<P, M, K> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Back<P, M> {
        &mut self.ring
    }
}
