//! The receive ring's core: frames' shapes in, pages to fill out; then responses in the order of their requests.
//!
//! A round places any number of frames, the shell copies them, says which copies failed, and the round ends: a
//! response must sit in its request's slot, so that responses are written in order and once the copies are done. With
//! a response log a round's responses are published whole, by a backend that takes over if not by this one.

use crate::assemble::Fault;
use crate::logged_ring::LoggedRing;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{self, RxFlags, RxResponse, RxSlot, SLOTS_MIN, Status};
use ring_abi::ring::{BadMemory, Notify};
use ring_abi::shm::Memory;
use ring_abi::{GrantRef, PAGE_SIZE};

/// What the core has to know of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// Bytes.
    pub len: usize,
    /// Of [`RxFlags`], `CSUM_BLANK` and `DATA_VALIDATED`.
    pub flags: RxFlags,
    /// Segmentation that the guest is to do or need not: `XEN_NETIF_GSO_TYPE_*` and bytes of each segment.
    pub gso: Option<(u8, u16)>,
}

impl Shape {
    /// Requests that such a frame uses up.
    #[inline]
    pub fn slots(&self) -> usize {
        self.len.div_ceil(PAGE_SIZE).max(1) + usize::from(self.gso.is_some())
    }
}

/// Bytes of a frame that go to one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// The guest's page.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes; they end in the page.
    pub len: u16,
    /// Where in the frame they begin.
    pub at: u32,
}

/// What became of placing a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// The pages are in the list; the number is the frame's in this round.
    Frame(usize),
    /// The guest has posted too few requests.
    Wait,
    /// No number of requests would do: more than [`SLOTS_MIN`] slots.
    TooLong,
}

/// The backend's half of a receive ring.
#[derive(Debug)]
pub struct Rx<M, K> {
    ring: LoggedRing<netif::Rx, M, K>,
    /// Responses of this round.
    round: Vec<RxSlot>,
    /// Where in `round` each frame's responses begin.
    frames: Vec<usize>,
}

impl<M: Memory, K: Memory> Rx<M, K> {
    /// Attaches to the ring in `memory`.
    ///
    /// # Errors
    /// [`BadMemory`] where it cannot hold a ring.
    pub fn attach(memory: M) -> Result<Self, BadMemory> {
        let ring = LoggedRing::attach(memory)?;
        let slots = ring.size() as usize;
        let (round, frames) = (Vec::with_capacity(slots), Vec::with_capacity(slots));
        Ok(Self { ring, round, frames })
    }

    /// The ring, to begin or take up its response log.
    pub fn logged(&mut self) -> &mut LoggedRing<netif::Rx, M, K> {
        &mut self.ring
    }

    /// Takes requests for a frame and adds the pages to fill to `fills`.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    #[inline]
    pub fn place(&mut self, shape: Shape, fills: &mut Vec<Fill>) -> Result<Placed, Fault> {
        let needed = shape.slots();
        if needed > self.ring.seen() as usize && !self.enough(needed)? {
            return Ok(if needed > SLOTS_MIN { Placed::TooLong } else { Placed::Wait });
        }
        let number = self.frames.len();
        self.frames.push(self.round.len());
        if shape.gso.is_none() && shape.len <= PAGE_SIZE {
            fills.extend(self.take(0, shape.len, shape.flags)?);
        } else {
            self.place_long(shape, fills)?;
        }
        Ok(Placed::Frame(number))
    }

    /// As [`Rx::place`] for a frame of one page without segmentation: the page to fill and the frame's number, or
    /// nothing where the guest has posted no request.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    #[inline]
    pub fn place_page(&mut self, len: usize, flags: RxFlags) -> Result<Option<(Fill, usize)>, Fault> {
        debug_assert!(len <= PAGE_SIZE);
        let before = self.round.len();
        let Some(fill) = self.take(0, len, flags)? else { return Ok(None) };
        self.frames.push(before);
        Ok(Some((fill, self.frames.len() - 1)))
    }

    /// Says that a frame of this round could not be copied: the guest is told so, and the others go on.
    ///
    /// # Panics
    /// If there is no such frame in this round.
    pub fn fail(&mut self, frame: usize) {
        let end = self.frames.get(frame + 1).copied().unwrap_or(self.round.len());
        let mut is_extra = false;
        for slot in &mut self.round[self.frames[frame]..end] {
            // An extra is no response and stays what it is; the chain of flags must stay as well.
            if std::mem::take(&mut is_extra) {
                continue;
            }
            let response = slot.response();
            is_extra = response.flags.contains(RxFlags::EXTRA_INFO);
            *slot = RxResponse { status: Status::ERROR.0, ..response }.into();
        }
    }

    /// Ends the round: its copies are made. Nothing is published before [`Rx::commit`].
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

    /// Asks to be notified of the next request; `true` if there are requests not seen before.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        let before = self.ring.seen();
        self.ring.arm()?;
        Ok(self.ring.seen() > before)
    }

    /// Whether the guest has posted any request that is not taken.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    pub fn posted(&mut self) -> Result<u32, Fault> {
        self.ring.look()?;
        Ok(self.ring.seen())
    }

    fn enough(&mut self, needed: usize) -> Result<bool, Fault> {
        if needed > SLOTS_MIN {
            return Ok(false);
        }
        self.ring.look()?;
        Ok(needed <= self.ring.seen() as usize)
    }

    #[inline]
    fn take(&mut self, at: usize, len: usize, flags: RxFlags) -> Result<Option<Fill>, Fault> {
        let Some(request) = self.ring.pop()? else { return Ok(None) };
        self.round.push(RxResponse { id: request.id, offset: 0, flags, status: len as i16 }.into());
        Ok(Some(Fill { gref: request.gref, offset: 0, len: len as u16, at: at as u32 }))
    }

    fn place_long(&mut self, shape: Shape, fills: &mut Vec<Fill>) -> Result<(), Fault> {
        let mut at = 0;
        loop {
            let len = (shape.len - at).min(PAGE_SIZE);
            let mut flags = if at == 0 { shape.flags } else { RxFlags::empty() };
            flags.set(RxFlags::MORE_DATA, at + len < shape.len);
            flags.set(RxFlags::EXTRA_INFO, at == 0 && shape.gso.is_some());
            // `place` has seen as many requests as are needed.
            fills.extend(self.take(at, len, flags)?);
            if let (0, Some((gso_type, size))) = (at, shape.gso) {
                // The extra takes a request's slot, whose page stays empty and whose id is lost, as with Linux:
                // the frontend knows a slot's page by the slot.
                let _ = self.ring.pop()?;
                self.round.push(Extra { more: false, kind: Kind::Gso { size, gso_type } }.into());
            }
            at += len;
            if at >= shape.len {
                return Ok(());
            }
        }
    }
}
