//! A ring that may have a response log, by which another process can resume it.

use inflight::{LogMismatch, ResponseLog, ResumeError};
use ring_abi::ring::{Back, BadMemory, Fault, Notify, Protocol};
use ring_abi::shm::Memory;

/// The backend's half of a ring, and its response log if it has one. All responses go through [`LoggedRing`], so that
/// the log misses none.
#[derive(Debug)]
pub struct LoggedRing<P, M, L> {
    ring: Back<P, M>,
    response_log: Option<ResponseLog<P, L>>,
}

impl<P: Protocol, M: Memory, L: Memory> LoggedRing<P, M, L> {
    pub(crate) fn attach(memory: M) -> Result<Self, BadMemory> {
        Ok(Self { ring: Back::attach(memory)?, response_log: None })
    }

    /// Bytes that a response log of this ring needs.
    pub fn log_bytes(&self) -> usize {
        ResponseLog::<P, L>::bytes(self.ring.size())
    }

    /// Starts a response log in `memory`.
    ///
    /// # Errors
    /// [`LogMismatch`] where `memory` is too small.
    pub fn record(&mut self, memory: L) -> Result<(), LogMismatch> {
        self.response_log = Some(ResponseLog::start(memory, &self.ring)?);
        Ok(())
    }

    /// Resumes the ring from the response log that an earlier backend process kept in `memory`: finishes the group of
    /// responses that process was writing, and takes every later request again. The guest is to be notified whether or
    /// not its event index asks for that, since the earlier process may have missed it.
    ///
    /// # Errors
    /// [`ResumeError`] where the log belongs to another ring, or the ring's indexes are impossible.
    pub fn resume(&mut self, memory: L) -> Result<(), ResumeError> {
        self.response_log = Some(ResponseLog::resume(memory, &mut self.ring)?);
        Ok(())
    }

    /// Whether there is a response log, which needs responses in the order of their requests.
    #[inline]
    pub(crate) fn is_logged(&self) -> bool {
        self.response_log.is_some()
    }

    /// Writes the responses of one packet or round. A backend that resumes publishes all of them or none.
    #[inline]
    pub(crate) fn push_all(&mut self, responses: impl Iterator<Item = P::Response> + Clone) {
        match &mut self.response_log {
            None => responses.for_each(|response| self.ring.push(&response)),
            Some(response_log) => response_log.push(&mut self.ring, responses),
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Result<Option<P::Request>, Fault> {
        self.ring.pop()
    }

    #[inline]
    pub(crate) fn refresh(&mut self) -> Result<(), Fault> {
        self.ring.refresh().map(|_| ())
    }

    #[inline]
    pub(crate) fn seen(&self) -> u32 {
        self.ring.seen()
    }

    #[inline]
    pub(crate) fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    #[inline]
    pub(crate) fn arm(&mut self) -> Result<bool, Fault> {
        self.ring.arm()
    }

    #[inline]
    pub(crate) fn arm_after(&mut self, count: u32) -> Result<bool, Fault> {
        self.ring.arm_after(count)
    }

    pub(crate) fn unanswered(&self) -> u32 {
        self.ring.unanswered()
    }

    pub(crate) fn size(&self) -> u32 {
        self.ring.size()
    }
}
