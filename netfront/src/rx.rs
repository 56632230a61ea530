//! The receive ring: posts empty buffers and takes packets.
//!
//! The backend writes each response into its request's slot, so that the slot tells the buffer; a response with
//! another id is a fault. All buffers of a packet, also of one that is to be dropped, belong to the caller until they
//! are posted again.

use crate::tx::Fault;
use alloc::boxed::Box;
use alloc::vec;
use arrayvec::ArrayVec;
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6, Kind};
use ring_abi::netif::{self, ETH_HLEN, MAX_TX_SIZE, RxFlags, RxRequest, SLOTS_FATAL};
use ring_abi::ring::{BadMemory, Front, Notify, Protocol};
use ring_abi::shm::Memory;
use ring_abi::{GrantRef, PAGE_SIZE};

/// Bytes of a packet in one buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The buffer.
    pub buffer: u16,
    /// Offset of the first byte in the page.
    pub offset: u16,
    /// Bytes; `offset + len` is at most the page's size.
    pub len: u16,
}

/// Why a packet is to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// The backend could not fill a buffer: a negative status.
    Status,
    /// Bytes beyond a page's end, or a packet longer than [`MAX_TX_SIZE`] or shorter than an Ethernet header.
    Size,
    /// More slots than a packet may have.
    Slots,
    /// An extra that was not negotiated, or a segmentation of unknown type or into segments of 0 bytes.
    Extra,
}

/// Most slots taken as one packet; what follows is taken as the next packet.
const BUFFERS: usize = 32;

/// A packet.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    len: usize,
    flags: RxFlags,
    gso: Option<(u8, u16)>,
    drop_reason: Option<DropReason>,
    fragments: ArrayVec<Fragment, SLOTS_FATAL>,
    buffers: ArrayVec<u16, BUFFERS>,
}

impl Packet {
    /// Bytes of the whole packet.
    #[inline]
    pub fn size(&self) -> usize {
        self.len
    }

    /// The first slot's flags.
    #[inline]
    pub fn flags(&self) -> RxFlags {
        self.flags
    }

    /// Segmentation: [`GSO_TCPV4`] or [`GSO_TCPV6`], and bytes of each segment, not 0.
    #[inline]
    pub fn gso(&self) -> Option<(u8, u16)> {
        self.gso
    }

    /// Why the packet is to be dropped, if it is.
    #[inline]
    pub fn drop_reason(&self) -> Option<DropReason> {
        self.drop_reason
    }

    /// The packet's bytes, in order.
    #[inline]
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// Every buffer to be posted again, also of a packet that is to be dropped.
    #[inline]
    pub fn buffers(&self) -> &[u16] {
        &self.buffers
    }

    #[inline]
    fn clear(&mut self) {
        self.len = 0;
        self.flags = RxFlags::empty();
        self.gso = None;
        self.drop_reason = None;
        self.fragments.clear();
        self.buffers.clear();
    }

    #[inline]
    fn add(&mut self, buffer: u16, offset: u16, status: i16) {
        let reason = match u16::try_from(status) {
            Err(_) => Some(DropReason::Status),
            Ok(len) if usize::from(offset) + usize::from(len) > PAGE_SIZE => Some(DropReason::Size),
            Ok(len) => {
                self.len += usize::from(len);
                self.fragments.try_push(Fragment { buffer, offset, len }).err().map(|_| DropReason::Slots)
            }
        };
        self.drop_reason = self.drop_reason.or(reason);
    }

    fn add_extra(&mut self, kind: Kind) {
        match kind {
            Kind::Gso { size, gso_type } if size != 0 && matches!(gso_type, GSO_TCPV4 | GSO_TCPV6) => {
                self.gso = Some((gso_type, size));
            }
            // Some backends send a packet's hash without having been asked for it.
            Kind::Hash { .. } => {}
            _ => self.drop_reason = self.drop_reason.or(Some(DropReason::Extra)),
        }
    }

    #[inline]
    fn finish(&mut self) {
        if self.drop_reason.is_none() && !(ETH_HLEN..=MAX_TX_SIZE).contains(&self.len) {
            self.drop_reason = Some(DropReason::Size);
        }
    }
}

/// What the next slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    First,
    More,
    Extra {
        /// Responses follow the extras.
        more_data: bool,
    },
}

/// The frontend's half of a receive ring.
#[derive(Debug)]
pub struct Rx<M> {
    ring: Front<netif::Rx, M>,
    expect: Expect,
    /// Buffers posted so far, modulo 2^32.
    posted: u32,
    /// Slots taken so far, modulo 2^32.
    taken: u32,
    /// The buffer in each slot.
    slots: Box<[u16]>,
    /// For each buffer, whether it is posted.
    is_posted: Box<[bool]>,
}

impl<M: Memory> Rx<M> {
    /// Initialises a ring in `memory`; no buffer is posted.
    ///
    /// # Errors
    /// [`BadMemory`] where `memory` cannot hold a ring.
    pub fn init(memory: M) -> Result<Self, BadMemory> {
        let ring = Front::init(memory)?;
        let size = ring.size() as usize;
        Ok(Self {
            ring,
            expect: Expect::First,
            posted: 0,
            taken: 0,
            slots: vec![0; size].into(),
            is_posted: vec![false; size].into(),
        })
    }

    /// Gives the ring's memory back.
    pub fn into_memory(self) -> M {
        self.ring.into_memory()
    }

    /// Slots of the ring, which is also the number of buffers.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Posts an empty buffer. [`Rx::commit`] publishes it.
    ///
    /// # Panics
    /// If the buffer is posted already, or is not below [`Rx::slots`]: a caller's error, which no backend can cause.
    #[inline]
    pub fn post(&mut self, buffer: u16, gref: GrantRef) {
        let was_posted = core::mem::replace(&mut self.is_posted[usize::from(buffer)], true);
        assert!(!was_posted && self.ring.push(&RxRequest { id: buffer, gref }), "a buffer has one owner");
        self.slots[self.posted as usize & (self.slots.len() - 1)] = buffer;
        self.posted = self.posted.wrapping_add(1);
    }

    /// Takes the next packet into `packet`; `false` if no packet is complete. `packet` then holds the slots taken so
    /// far, and is to be given to the next call.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    pub fn poll(&mut self, packet: &mut Packet) -> Result<bool, Fault> {
        loop {
            let Some(slot) = self.ring.pop()? else { return Ok(false) };
            if self.expect == Expect::First {
                packet.clear();
            }
            let buffer = self.take_buffer();
            packet.buffers.push(buffer);
            let more = match self.expect {
                Expect::Extra { more_data } => {
                    let extra = slot.extra();
                    packet.add_extra(extra.kind);
                    self.expect = if extra.more { self.expect } else { Expect::More };
                    extra.more || more_data
                }
                Expect::First | Expect::More => {
                    let response = slot.response();
                    if response.id != buffer {
                        return Err(Fault::Id { ring: netif::Rx::NAME, id: response.id });
                    }
                    packet.add(buffer, response.offset, response.status);
                    let more_data = response.flags.contains(RxFlags::MORE_DATA);
                    // Extras follow the first slot only.
                    let extra = self.expect == Expect::First && response.flags.contains(RxFlags::EXTRA_INFO);
                    if self.expect == Expect::First {
                        packet.flags = response.flags;
                    }
                    self.expect = if extra { Expect::Extra { more_data } } else { Expect::More };
                    more_data || extra
                }
            };
            if !more || packet.buffers.is_full() {
                if more {
                    packet.drop_reason = packet.drop_reason.or(Some(DropReason::Slots));
                }
                self.expect = Expect::First;
                packet.finish();
                return Ok(true);
            }
        }
    }

    /// Publishes the posted buffers.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Sets the ring's event index, so that the next response is notified; `true` if there are responses already.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.arm()?)
    }

    /// Whether there are responses that were not taken.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    pub fn has_responses(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.refresh()?)
    }

    /// Whether a buffer is posted, and so belongs to the backend.
    pub fn is_posted(&self, buffer: u16) -> bool {
        self.is_posted.get(usize::from(buffer)).is_some_and(|posted| *posted)
    }

    /// Takes back the buffer of the slot just popped.
    #[inline]
    fn take_buffer(&mut self) -> u16 {
        let buffer = self.slots[self.taken as usize & (self.slots.len() - 1)];
        self.taken = self.taken.wrapping_add(1);
        self.is_posted[usize::from(buffer)] = false;
        buffer
    }
}
