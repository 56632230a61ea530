//! The receive ring's core: empty buffers out, packets in.
//!
//! The backend answers each request in its slot, so that the slot tells the buffer; an id that disagrees is a lie. A
//! packet's buffers are the caller's, all of them, until each is posted again: also those of a packet that is bad.

use crate::tx::Fault;
use alloc::boxed::Box;
use alloc::vec;
use arrayvec::ArrayVec;
use ring_abi::netif::extra::{GSO_TCPV4, GSO_TCPV6, Kind};
use ring_abi::netif::{self, MAX_TX_SIZE, RxFlags, RxRequest, SLOTS_FATAL};
use ring_abi::ring::{BadMemory, Front, Notify};
use ring_abi::shm::Memory;
use ring_abi::{GrantRef, PAGE_SIZE};

/// Bytes of a packet in one buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The buffer.
    pub buffer: u16,
    /// First byte in its page.
    pub offset: u16,
    /// Bytes; with `offset` never past the page's end.
    pub len: u16,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// The backend could not fill a buffer: a negative status.
    Status,
    /// Bytes past a page's end, or more than a packet may have, or none.
    Size,
    /// More slots than a packet may have.
    Slots,
    /// An extra that nobody asked for, or a segmentation that is none.
    Extra,
}

/// Most buffers that one packet can use up before its rest is taken for a packet of its own.
const BUFFERS: usize = 32;

/// A packet.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    len: usize,
    flags: RxFlags,
    gso: Option<(u8, u16)>,
    bad: Option<Bad>,
    pieces: ArrayVec<Piece, SLOTS_FATAL>,
    buffers: ArrayVec<u16, BUFFERS>,
}

impl Packet {
    /// Bytes in all.
    #[inline]
    pub fn size(&self) -> usize {
        self.len
    }

    /// The first slot's flags.
    #[inline]
    pub fn flags(&self) -> RxFlags {
        self.flags
    }

    /// Segmentation: `XEN_NETIF_GSO_TYPE_*`, one of the two, and bytes of each segment, not 0.
    #[inline]
    pub fn gso(&self) -> Option<(u8, u16)> {
        self.gso
    }

    /// Why it is to be dropped, if it is.
    #[inline]
    pub fn bad(&self) -> Option<Bad> {
        self.bad
    }

    /// Where its bytes lie, in order.
    #[inline]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Every buffer to be posted again, also of a bad packet.
    #[inline]
    pub fn buffers(&self) -> &[u16] {
        &self.buffers
    }

    #[inline]
    fn clear(&mut self) {
        (self.len, self.flags, self.gso, self.bad) = (0, RxFlags::empty(), None, None);
        self.pieces.clear();
        self.buffers.clear();
    }

    #[inline]
    fn add(&mut self, buffer: u16, offset: u16, status: i16) {
        let bad = match u16::try_from(status) {
            Err(_) => Some(Bad::Status),
            Ok(len) if usize::from(offset) + usize::from(len) > PAGE_SIZE => Some(Bad::Size),
            Ok(len) => {
                self.len += usize::from(len);
                self.pieces.try_push(Piece { buffer, offset, len }).err().map(|_| Bad::Slots)
            }
        };
        self.bad = self.bad.or(bad);
    }

    fn note(&mut self, kind: Kind) {
        match kind {
            Kind::Gso { size, gso_type } if size != 0 && matches!(gso_type, GSO_TCPV4 | GSO_TCPV6) => {
                self.gso = Some((gso_type, size));
            }
            // The hash of a packet is told without being asked for by some, and harmless.
            Kind::Hash { .. } => {}
            _ => self.bad = self.bad.or(Some(Bad::Extra)),
        }
    }

    #[inline]
    fn finish(&mut self) {
        if self.bad.is_none() && !(14..=MAX_TX_SIZE).contains(&self.len) {
            self.bad = Some(Bad::Size);
        }
    }
}

/// What the next slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    First,
    More,
    /// And whether data follows the extras.
    Extra {
        more_data: bool,
    },
}

/// The frontend's half of a receive ring.
#[derive(Debug)]
pub struct Rx<M> {
    ring: Front<netif::Rx, M>,
    expect: Expect,
    posted: u32,
    taken: u32,
    /// The buffer in each slot.
    slots: Box<[u16]>,
    /// Whether the backend has each buffer.
    has: Box<[bool]>,
}

impl<M: Memory> Rx<M> {
    /// An empty ring in `memory`; nothing is posted.
    ///
    /// # Errors
    /// [`BadMemory`] where it cannot hold a ring.
    pub fn init(memory: M) -> Result<Self, BadMemory> {
        let ring = Front::init(memory)?;
        let size = ring.size() as usize;
        let (slots, has) = (vec![0; size].into(), vec![false; size].into());
        Ok(Self { ring, expect: Expect::First, posted: 0, taken: 0, slots, has })
    }

    /// Slots of the ring, and buffers.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Gives an empty buffer, number below [`Rx::slots`], to the backend. Published by [`Rx::commit`].
    ///
    /// # Panics
    /// If the backend has it already, or there is no such buffer: our own error, never the peer's.
    #[inline]
    pub fn post(&mut self, buffer: u16, gref: GrantRef) {
        let had = core::mem::replace(&mut self.has[usize::from(buffer)], true);
        assert!(!had && self.ring.push(&RxRequest { id: buffer, gref }), "a buffer has one owner");
        self.slots[self.posted as usize & (self.slots.len() - 1)] = buffer;
        self.posted = self.posted.wrapping_add(1);
    }

    /// Takes the next packet into `packet`; `false` if there is none that is complete. What is there of an incomplete
    /// one stays in `packet`, which is to be given again.
    ///
    /// # Errors
    /// [`Fault`]: the interface goes down.
    pub fn poll(&mut self, packet: &mut Packet) -> Result<bool, Fault> {
        loop {
            let Some(slot) = self.ring.pop()? else { return Ok(false) };
            if self.expect == Expect::First {
                packet.clear();
            }
            let buffer = self.take();
            packet.buffers.push(buffer);
            let more = match self.expect {
                Expect::Extra { more_data } => {
                    let extra = slot.extra();
                    packet.note(extra.kind);
                    self.expect = if extra.more { self.expect } else { Expect::More };
                    extra.more || more_data
                }
                Expect::First | Expect::More => {
                    let response = slot.response();
                    if response.id != buffer {
                        return Err(Fault::Id { ring: "netif rx", id: response.id });
                    }
                    packet.add(buffer, response.offset, response.status);
                    let (data, extra) = (
                        response.flags.contains(RxFlags::MORE_DATA),
                        // Only the first slot's extras mean anything.
                        self.expect == Expect::First && response.flags.contains(RxFlags::EXTRA_INFO),
                    );
                    if self.expect == Expect::First {
                        packet.flags = response.flags;
                    }
                    self.expect = if extra { Expect::Extra { more_data: data } } else { Expect::More };
                    data || extra
                }
            };
            if !more || packet.buffers.is_full() {
                if more {
                    packet.bad = packet.bad.or(Some(Bad::Slots));
                }
                self.expect = Expect::First;
                packet.finish();
                return Ok(true);
            }
        }
    }

    /// Publishes what was posted.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Asks to be notified of the next response; `true` if there are some already.
    ///
    /// # Errors
    /// As [`Rx::poll`].
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.arm()?)
    }

    /// Whether the backend has a buffer.
    pub fn has(&self, buffer: u16) -> bool {
        self.has.get(usize::from(buffer)).is_some_and(|has| *has)
    }

    /// The buffer of the slot just taken.
    #[inline]
    fn take(&mut self) -> u16 {
        let buffer = self.slots[self.taken as usize & (self.slots.len() - 1)];
        self.taken = self.taken.wrapping_add(1);
        self.has[usize::from(buffer)] = false;
        buffer
    }
}
