//! The shared descriptor ring of ring.h: [`Protocol`], [`Front`], [`Back`], [`Fault`] and [`Notify`].
//!
//! Requests and responses share the slots: a response takes the place of a request that was consumed. Each half
//! keeps its own indexes in private memory and checks the peer's before it uses them. Orderings are fences, as in
//! ring.h.
//!
//! ```
//! use ring_abi::blkif::{Io, OP_READ, Request, Response, Status, X86_64};
//! use ring_abi::ring::{Back, Front, Notify};
//! # use ring_abi::testing::Pages;
//! # let page = Pages::new(1);
//! // `page` is one that both ends reach: a granted page in the frontend, its mapping in the backend.
//! let mut front = Front::<X86_64, _>::init(page.clone())?;
//! let mut back = Back::<X86_64, _>::attach(page)?;
//!
//! front.push(&Request::Io(Io { id: 7, operation: OP_READ, ..Io::EMPTY }));
//! if front.commit() == Notify::Yes { /* send the event */ }
//!
//! while let Some(request) = back.pop()? {
//!     back.push(&Response { id: request.id(), operation: request.operation(), status: Status::OKAY });
//! }
//! if back.commit() == Notify::Yes { /* send the event */ }
//! assert_eq!(front.pop()?.map(|response| response.id), Some(7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod slots;

use crate::shm::{HEADER_LEN, Memory, Slot};
use crate::sync::{Barrier, Ordering};
use slots::Slots;

/// `DEFINE_RING_TYPES(name, req, rsp)` of ring.h:150, as a type: how bytes in a slot become meaning and back.
///
/// A read takes each word of the slot at most once (XSA-155); a write leaves no byte of the response that the
/// peer can see unwritten (XSA-216).
pub trait Protocol {
    /// The ring's name in errors and traces, such as "blkif".
    const NAME: &'static str;
    /// Bytes of a slot: the larger of request and response.
    const SLOT: usize;
    /// What a frontend sends.
    type Request;
    /// What a backend answers.
    type Response;
    /// Copies a request out of shared memory.
    fn read_request(slot: Slot<'_>) -> Self::Request;
    /// Copies a request out of shared memory over an earlier one; quicker where the two are of a kind.
    #[inline]
    fn read_request_into(slot: Slot<'_>, into: &mut Self::Request) {
        *into = Self::read_request(slot);
    }
    /// Copies a request into shared memory.
    fn write_request(slot: Slot<'_>, request: &Self::Request);
    /// Copies a response out of shared memory.
    fn read_response(slot: Slot<'_>) -> Self::Response;
    /// Copies a response into shared memory.
    fn write_response(slot: Slot<'_>, response: &Self::Response);
}

/// The peer broke the ring's protocol: close this device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// `RING_{REQUEST,RESPONSE}_PROD_OVERFLOW` (ring.h:263): the producer ran past the ring, or backwards.
    #[error("{ring}: peer's producer index {found} is not within {consumed}..={limit}")]
    Overflow {
        /// [`Protocol::NAME`].
        ring: &'static str,
        /// The index the peer published.
        found: u32,
        /// The first index not yet consumed.
        consumed: u32,
        /// The last index that the peer could have reached.
        limit: u32,
    },
}

/// The memory offered cannot hold a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{ring}: {len} bytes cannot hold a ring: expected 1 to {} whole pages, a power of two of them",
    MAX_PAGES
)]
pub struct BadMemory {
    /// [`Protocol::NAME`].
    pub ring: &'static str,
    /// Bytes found.
    pub len: usize,
}

/// Most pages of a ring: `XENBUS_MAX_RING_GRANTS`, order 4.
pub const MAX_PAGES: usize = 16;

/// Whether the peer asked to be woken for what was just published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a peer that sleeps is woken only by its event channel"]
pub enum Notify {
    /// Send an event through the event channel.
    Yes,
    /// The peer is awake, or wants a larger batch.
    No,
}

impl Notify {
    /// `true` for [`Notify::Yes`].
    #[inline]
    pub fn wanted(self) -> bool {
        self == Self::Yes
    }

    /// `RING_PUSH_*_AND_CHECK_NOTIFY`: the peer's event index lies in what was published.
    #[inline]
    fn check(old: u32, new: u32, event: u32) -> Self {
        if new.wrapping_sub(event) < new.wrapping_sub(old) { Self::Yes } else { Self::No }
    }
}

/// `__RING_SIZE` (ring.h:46): slots in `len` bytes, rounded down to a power of two.
#[inline(always)]
pub const fn slots(slot: usize, len: usize) -> u32 {
    let whole = (len - HEADER_LEN) / slot;
    1 << whole.ilog2()
}

/// The frontend's half: sends requests, receives responses.
#[derive(Debug)]
pub struct Front<P, M> {
    slots: Slots<P, M>,
    req_prod: u32,
    req_published: u32,
    rsp_cons: u32,
    rsp_seen: u32,
}

impl<P: Protocol, M: Memory> Front<P, M> {
    /// `SHARED_RING_INIT` and `FRONT_RING_INIT` (ring.h:189): an empty ring in `memory`, whose other bytes stay.
    #[inline(always)]
    pub fn init(memory: M) -> Result<Self, BadMemory> {
        let slots = Slots::new(memory)?;
        let header = slots.memory.header();
        header.req_prod.store(0, Ordering::Relaxed);
        header.rsp_prod.store(0, Ordering::Relaxed);
        header.req_event.store(1, Ordering::Relaxed);
        header.rsp_event.store(1, Ordering::Relaxed);
        Ok(Self { slots, req_prod: 0, req_published: 0, rsp_cons: 0, rsp_seen: 0 })
    }

    /// Slots of the ring.
    #[inline]
    pub fn size(&self) -> u32 {
        self.slots.size()
    }

    /// `RING_FREE_REQUESTS`: requests that can be pushed now.
    #[inline(always)]
    pub fn free(&self) -> u32 {
        self.size() - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request into the next slot; `false` and nothing written if the ring is full.
    #[inline(always)]
    pub fn push(&mut self, request: &P::Request) -> bool {
        if self.free() == 0 {
            return false;
        }
        P::write_request(self.slots.at(self.req_prod), request);
        self.req_prod = self.req_prod.wrapping_add(1);
        true
    }

    /// `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY` (ring.h:393): publishes what was pushed.
    #[inline(always)]
    pub fn commit(&mut self) -> Notify {
        let old = self.req_published;
        let new = self.req_prod;
        if old == new {
            return Notify::No;
        }
        let header = self.slots.memory.header();
        Barrier::Publish.fence();
        header.req_prod.store(new, Ordering::Relaxed);
        Barrier::Published.fence();
        self.req_published = new;
        Notify::check(old, new, header.req_event.load(Ordering::Relaxed))
    }

    /// Takes the next response, if there is one.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<P::Response>, Fault> {
        if self.rsp_cons == self.rsp_seen && !self.refresh()? {
            return Ok(None);
        }
        let slot = self.slots.at(self.rsp_cons);
        slot.prefetch_for_write();
        let response = P::read_response(slot);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// Responses that can be taken without reading the shared index again.
    #[inline(always)]
    pub fn seen(&self) -> u32 {
        self.rsp_seen.wrapping_sub(self.rsp_cons)
    }

    /// Starts to fetch the slots of the next `count` responses, of those that were seen: of a batch the slots come at the
    /// same time, where each taken by itself would be waited for.
    #[inline]
    pub fn prefetch(&self, count: u32) {
        self.slots.prefetch(self.rsp_cons, count.min(self.seen()));
    }

    /// Reads the backend's producer index, checked; `true` if responses wait.
    #[inline(always)]
    pub fn refresh(&mut self) -> Result<bool, Fault> {
        let found = self.slots.memory.header().rsp_prod.load(Ordering::Relaxed);
        Barrier::Observe.fence();
        if found.wrapping_sub(self.rsp_cons) > self.req_published.wrapping_sub(self.rsp_cons) {
            let limit = self.req_published;
            return Err(Fault::Overflow { ring: P::NAME, found, consumed: self.rsp_cons, limit });
        }
        self.rsp_seen = found;
        Ok(found != self.rsp_cons)
    }

    /// `RING_FINAL_CHECK_FOR_RESPONSES` (ring.h:420): requests an event for the next response and checks once more;
    /// `true` if there are responses already.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Fault> {
        if self.refresh()? {
            return Ok(true);
        }
        self.arm_after(1)
    }

    /// Requests an event only for the `count`th response after the last one taken; `true` if there are some already.
    #[inline]
    pub fn arm_after(&mut self, count: u32) -> Result<bool, Fault> {
        let header = self.slots.memory.header();
        header.rsp_event.store(self.rsp_cons.wrapping_add(count), Ordering::Relaxed);
        Barrier::Armed.fence();
        self.refresh()
    }

    /// Requests published and not yet answered.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.req_published.wrapping_sub(self.rsp_cons)
    }

    /// The memory that holds the ring.
    pub fn memory(&self) -> &M {
        &self.slots.memory
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.slots.memory
    }
}

/// The backend's half: receives requests, sends responses.
#[derive(Debug)]
pub struct Back<P, M> {
    slots: Slots<P, M>,
    req_cons: u32,
    req_seen: u32,
    rsp_prod: u32,
    rsp_published: u32,
}

impl<P: Protocol, M: Memory> Back<P, M> {
    /// `BACK_RING_ATTACH` (ring.h:211): joins a ring at the responses already sent, so that a backend that takes
    /// over sees the requests which were not answered.
    #[inline(always)]
    pub fn attach(memory: M) -> Result<Self, BadMemory> {
        let slots = Slots::new(memory)?;
        let rsp = slots.memory.header().rsp_prod.load(Ordering::Relaxed);
        Ok(Self { slots, req_cons: rsp, req_seen: rsp, rsp_prod: rsp, rsp_published: rsp })
    }

    /// Continues for an earlier backend that had taken all requests below index `taken`. Those that it did not answer
    /// are known from a log of its own (crate `inflight`) and are answered by this half.
    ///
    /// # Errors
    /// [`Fault::Overflow`] where that many requests cannot be in the ring; the half is then unchanged.
    pub fn resume_at(&mut self, taken: u32) -> Result<(), Fault> {
        let consumed = self.rsp_prod;
        let limit = consumed.wrapping_add(self.size());
        if taken.wrapping_sub(consumed) > self.size() {
            return Err(Fault::Overflow { ring: P::NAME, found: taken, consumed, limit });
        }
        self.req_cons = taken;
        self.req_seen = taken;
        Ok(())
    }

    /// Index of the next request to be taken.
    #[inline]
    pub fn consumed(&self) -> u32 {
        self.req_cons
    }

    /// Index of the next response to be pushed.
    #[inline]
    pub fn produced(&self) -> u32 {
        self.rsp_prod
    }

    /// Slots of the ring.
    #[inline]
    pub fn size(&self) -> u32 {
        self.slots.size()
    }

    /// `RING_COPY_REQUEST` (ring.h:297): takes the next request by one copy, if there is one.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<P::Request>, Fault> {
        if self.req_cons == self.req_seen && !self.refresh()? {
            return Ok(None);
        }
        let slot = self.slots.at(self.req_cons);
        slot.prefetch_for_write();
        let request = P::read_request(slot);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// As [`Back::pop`], but over an earlier request, so that nothing is moved; `false` and `into` left alone if
    /// there is none.
    #[inline(always)]
    pub fn pop_into(&mut self, into: &mut P::Request) -> Result<bool, Fault> {
        if self.req_cons == self.req_seen && !self.refresh()? {
            return Ok(false);
        }
        let slot = self.slots.at(self.req_cons);
        slot.prefetch_for_write();
        P::read_request_into(slot, into);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Requests that can be taken without reading the shared index again.
    #[inline(always)]
    pub fn seen(&self) -> u32 {
        self.req_seen.wrapping_sub(self.req_cons)
    }

    /// Starts to fetch the slots of the next `count` requests, of those that were seen: of a batch the slots come at the
    /// same time, where each taken by itself would be waited for.
    #[inline]
    pub fn prefetch(&self, count: u32) {
        self.slots.prefetch(self.req_cons, count.min(self.seen()));
    }

    /// Reads the frontend's producer index, checked; `true` if requests wait.
    #[inline(always)]
    pub fn refresh(&mut self) -> Result<bool, Fault> {
        let found = self.slots.memory.header().req_prod.load(Ordering::Relaxed);
        Barrier::Observe.fence();
        let limit = self.rsp_prod.wrapping_add(self.size());
        if found.wrapping_sub(self.req_cons) > limit.wrapping_sub(self.req_cons) {
            return Err(Fault::Overflow { ring: P::NAME, found, consumed: self.req_cons, limit });
        }
        self.req_seen = found;
        Ok(found != self.req_cons)
    }

    /// Requests taken and not yet answered.
    #[inline]
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Writes a response into the next slot.
    ///
    /// # Panics
    /// If more responses are pushed than requests were taken: our own error, never the peer's.
    #[inline(always)]
    pub fn push(&mut self, response: &P::Response) {
        assert!(self.rsp_prod != self.req_cons, "a response without a request");
        P::write_response(self.slots.at(self.rsp_prod), response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY` (ring.h:402): publishes what was pushed.
    #[inline(always)]
    pub fn commit(&mut self) -> Notify {
        let old = self.rsp_published;
        let new = self.rsp_prod;
        if old == new {
            return Notify::No;
        }
        let header = self.slots.memory.header();
        Barrier::Publish.fence();
        header.rsp_prod.store(new, Ordering::Relaxed);
        Barrier::Published.fence();
        self.rsp_published = new;
        Notify::check(old, new, header.rsp_event.load(Ordering::Relaxed))
    }

    /// `RING_FINAL_CHECK_FOR_REQUESTS` (ring.h:411): requests an event for the next request and checks once more;
    /// `true` if there are requests already.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Fault> {
        if self.refresh()? {
            return Ok(true);
        }
        self.arm_after(1)
    }

    /// Requests an event only for the `count`th request after the last one taken, for a caller that leaves fewer in the ring;
    /// `true` if there are some already, few or many: [`Back::seen`].
    #[inline]
    pub fn arm_after(&mut self, count: u32) -> Result<bool, Fault> {
        let header = self.slots.memory.header();
        header.req_event.store(self.req_cons.wrapping_add(count), Ordering::Relaxed);
        Barrier::Armed.fence();
        self.refresh()
    }

    /// The memory that holds the ring.
    pub fn memory(&self) -> &M {
        &self.slots.memory
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.slots.memory
    }
}
