//! The receive ring: assigns the guest's posted pages to frames, and writes responses in the order of the requests.
//!
//! A round places any number of frames; the caller then copies them, reports the frames whose copies failed, and
//! finishes the round. A response must be in its request's slot, so that responses are written in order and only once
//! the copies are done. With a response log, all responses of a round are published or none: if this backend is killed
//! in between, the one that resumes publishes the rest.

use crate::assemble::Fault;
use crate::logged_ring::LoggedRing;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{self, RxFlags, RxResponse, RxSlot, SLOTS_MIN, Status};
use ring_abi::ring::{BadMemory, Notify};
use ring_abi::shm::Memory;
use ring_abi::{GrantRef, PAGE_SIZE};

/// What the ring has to carry of a frame, besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameInfo {
    /// Bytes of the frame.
    pub len: usize,
    /// `CSUM_BLANK` and `DATA_VALIDATED`; the other flags are set by the ring.
    pub flags: RxFlags,
    /// The segmentation still to be done: `XEN_NETIF_GSO_TYPE_*` and bytes of each segment.
    pub gso: Option<(u8, u16)>,
}

impl FrameInfo {
    /// Requests that the frame uses up.
    #[inline]
    pub fn slots(&self) -> usize {
        self.len.div_ceil(PAGE_SIZE).max(1) + usize::from(self.gso.is_some())
    }
}

/// A page to be filled with a part of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFill {
    /// The guest's page.
    pub gref: GrantRef,
    /// Offset of the first byte in the page.
    pub offset: u16,
    /// Bytes; `offset + len` is at most the page's size.
    pub len: u16,
    /// Offset of the first byte in the frame.
    pub frame_offset: u32,
}

/// The result of [`Rx::place`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// The frame has its pages; the number is the frame's index in this round.
    Frame(usize),
    /// The guest has posted too few requests.
    Wait,
    /// The frame needs more than [`SLOTS_MIN`] slots, which no guest has to accept.
    TooLong,
}

/// The backend's half of a receive ring.
#[derive(Debug)]
pub struct Rx<M, L> {
    ring: LoggedRing<netif::Rx, M, L>,
    /// Responses of this round, not yet on the ring.
    round: Vec<RxSlot>,
    /// For each frame, the index of its first response in `round`.
    frames: Vec<usize>,
}

impl<M: Memory, L: Memory> Rx<M, L> {
    /// Attaches to the ring in `memory`.
    ///
    /// # Errors
    /// [`BadMemory`] where `memory` cannot hold a ring.
    pub fn attach(memory: M) -> Result<Self, BadMemory> {
        let ring = LoggedRing::attach(memory)?;
        let slots = ring.size() as usize;
        Ok(Self { ring, round: Vec::with_capacity(slots), frames: Vec::with_capacity(slots) })
    }

    /// The ring, to start or resume its response log.
    pub fn logged(&mut self) -> &mut LoggedRing<netif::Rx, M, L> {
        &mut self.ring
    }

    /// Takes requests for a frame, and appends the pages to be filled to `fills`.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    #[inline]
    pub fn place(&mut self, info: FrameInfo, fills: &mut Vec<PageFill>) -> Result<Placement, Fault> {
        let needed = info.slots();
        if needed > self.ring.seen() as usize && !self.has_requests(needed)? {
            return Ok(if needed > SLOTS_MIN { Placement::TooLong } else { Placement::Wait });
        }
        let index = self.frames.len();
        self.frames.push(self.round.len());
        if info.gso.is_none() && info.len <= PAGE_SIZE {
            fills.extend(self.take(0, info.len, info.flags)?);
        } else {
            self.place_long(info, fills)?;
        }
        Ok(Placement::Frame(index))
    }

    /// Takes a request for a frame of one page without segmentation, as [`Rx::place`] does. Returns the page to be
    /// filled and the frame's index in this round, or `None` where the guest has posted no request.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    #[inline]
    pub fn place_page(&mut self, len: usize, flags: RxFlags) -> Result<Option<(PageFill, usize)>, Fault> {
        debug_assert!(len <= PAGE_SIZE);
        let before = self.round.len();
        let Some(fill) = self.take(0, len, flags)? else { return Ok(None) };
        self.frames.push(before);
        Ok(Some((fill, self.frames.len() - 1)))
    }

    /// Marks a frame of this round as not copied: its responses get `NETIF_RSP_ERROR`.
    ///
    /// # Panics
    /// If there is no such frame in this round.
    pub fn fail(&mut self, frame: usize) {
        let end = self.frames.get(frame + 1).copied().unwrap_or(self.round.len());
        let mut is_extra = false;
        for slot in &mut self.round[self.frames[frame]..end] {
            // An extra has no status. The flags stay, since the guest follows them to the packet's end.
            if std::mem::take(&mut is_extra) {
                continue;
            }
            let response = slot.response();
            is_extra = response.flags.contains(RxFlags::EXTRA_INFO);
            *slot = RxResponse { status: Status::ERROR.0, ..response }.into();
        }
    }

    /// Finishes the round, whose copies are done. [`Rx::commit`] publishes its responses.
    #[inline]
    pub fn finish(&mut self) {
        self.ring.push_all(self.round.iter().copied());
        self.round.clear();
        self.frames.clear();
    }

    /// Publishes the responses of finished rounds.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Sets the ring's event index, so that the guest notifies once it has posted `needed` requests that are not taken;
    /// `true` if there are as many already. Fewer may be left, of which a frame that needs more has taken none.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    pub fn arm(&mut self, needed: u32) -> Result<bool, Fault> {
        self.ring.arm_after(needed)?;
        Ok(self.ring.seen() >= needed)
    }

    /// Reads the guest's producer index, and returns the number of requests not taken yet.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    pub fn posted(&mut self) -> Result<u32, Fault> {
        self.ring.refresh()?;
        Ok(self.ring.seen())
    }

    /// Requests that were seen and not taken yet.
    pub(crate) fn untaken(&self) -> usize {
        self.ring.seen() as usize
    }

    fn has_requests(&mut self, needed: usize) -> Result<bool, Fault> {
        if needed > SLOTS_MIN {
            return Ok(false);
        }
        self.ring.refresh()?;
        Ok(needed <= self.ring.seen() as usize)
    }

    #[inline]
    fn take(&mut self, at: usize, len: usize, flags: RxFlags) -> Result<Option<PageFill>, Fault> {
        let Some(request) = self.ring.pop()? else { return Ok(None) };
        self.round.push(RxResponse { id: request.id, offset: 0, flags, status: len as i16 }.into());
        Ok(Some(PageFill { gref: request.gref, offset: 0, len: len as u16, frame_offset: at as u32 }))
    }

    fn place_long(&mut self, info: FrameInfo, fills: &mut Vec<PageFill>) -> Result<(), Fault> {
        let mut at = 0;
        loop {
            let len = (info.len - at).min(PAGE_SIZE);
            let mut flags = if at == 0 { info.flags } else { RxFlags::empty() };
            flags.set(RxFlags::MORE_DATA, at + len < info.len);
            flags.set(RxFlags::EXTRA_INFO, at == 0 && info.gso.is_some());
            // `place` has checked that there are as many requests as are needed.
            fills.extend(self.take(at, len, flags)?);
            if let (0, Some((gso_type, size))) = (at, info.gso) {
                // The extra takes the slot of a request, whose page stays unused and whose id is overwritten, as in
                // Linux: the frontend knows the page by the slot.
                let _ = self.ring.pop()?;
                self.round.push(Extra { more: false, kind: Kind::Gso { size, gso_type } }.into());
            }
            at += len;
            if at >= info.len {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::netif::RxRequest;
    use ring_abi::ring::Front;
    use ring_abi::testing::Pages;

    #[test]
    fn ring_with_too_few_requests_for_a_frame_is_armed_for_enough() {
        let page = Pages::new(1);
        let mut front: Front<netif::Rx, Pages> = Front::init(page.clone()).unwrap();
        let mut rx: Rx<Pages, Pages> = Rx::attach(page).unwrap();
        let mut post = |id| {
            assert!(front.push(&RxRequest { id, gref: GrantRef(8) }));
            front.commit()
        };
        let frame = FrameInfo { len: 2 * PAGE_SIZE + 1, ..FrameInfo::default() };
        let mut fills = Vec::new();
        // One of three is there, and stays.
        let _ = post(0);
        assert_eq!(rx.place(frame, &mut fills), Ok(Placement::Wait));
        assert_eq!(rx.arm(frame.slots() as u32), Ok(false));
        assert_eq!(post(1), Notify::No);
        assert_eq!(post(2), Notify::Yes, "nobody would look at the ring");
        assert_eq!(rx.place(frame, &mut fills), Ok(Placement::Frame(0)));
        rx.finish();
        // Enough were posted before the ring was armed.
        for id in 3..6 {
            let _ = post(id);
        }
        assert_eq!(rx.arm(3), Ok(true));
    }
}
