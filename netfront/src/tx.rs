//! The transmit ring's core: packets in, requests out; responses in, buffers back.
//!
//! A buffer is known by its number, which is its request's id. It has one owner at any time: the free list, the
//! caller who reserved it, or the backend (XSA-405).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use ring_abi::GrantRef;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{self, Status, TxFlags, TxRequest};
use ring_abi::ring::{BadMemory, Front, Notify};
use ring_abi::shm::Memory;

/// The backend broke the protocol: the interface goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A ring's indexes are impossible.
    #[error(transparent)]
    Ring(#[from] ring_abi::ring::Fault),
    /// A response for a buffer that the backend does not have.
    #[error("{ring}: a response for buffer {id}, which the backend does not have")]
    Id {
        /// Which ring.
        ring: &'static str,
        /// The id found.
        id: u16,
    },
}

/// Bytes of a packet in one buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The buffer, reserved before.
    pub buffer: u16,
    /// The page that it lies in.
    pub gref: GrantRef,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes.
    pub size: u16,
}

/// The frontend's half of a transmit ring.
#[derive(Debug)]
pub struct Tx<M> {
    ring: Front<netif::Tx, M>,
    /// The buffer given back last is used next: it is warm.
    free: Vec<u16>,
    sent: Box<[bool]>,
}

impl<M: Memory> Tx<M> {
    /// An empty ring in `memory`, and as many free buffers as it has slots.
    ///
    /// # Errors
    /// [`BadMemory`] where it cannot hold a ring.
    pub fn init(memory: M) -> Result<Self, BadMemory> {
        let ring = Front::init(memory)?;
        let size = ring.size() as u16;
        Ok(Self { free: (0..size).rev().collect(), sent: vec![false; size.into()].into(), ring })
    }

    /// Slots of the ring, and buffers.
    pub fn slots(&self) -> usize {
        self.sent.len()
    }

    /// Requests for which there are both slots and buffers. One is kept for an extra.
    #[inline]
    pub fn room(&self) -> usize {
        self.free.len().min(self.ring.free() as usize).saturating_sub(1)
    }

    /// Takes a buffer out of the free list: it is the caller's until it is sent.
    #[inline]
    pub fn reserve(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Gives back a buffer that was reserved and is not sent after all.
    pub fn cancel(&mut self, buffer: u16) {
        debug_assert!(!self.sent[usize::from(buffer)], "a buffer that the backend has");
        self.free.push(buffer);
    }

    /// Sends a packet in one buffer; `false` and nothing sent if the ring is full. Published by [`Tx::commit`].
    #[inline]
    pub fn send_one(&mut self, part: Part, flags: TxFlags) -> bool {
        let Part { buffer, gref, offset, size } = part;
        let pushed = self.ring.push(&TxRequest { gref, offset, flags, id: buffer, size }.into());
        self.sent[usize::from(buffer)] |= pushed;
        pushed
    }

    /// Sends a packet in several buffers, with a segmentation by `gso` (`XEN_NETIF_GSO_TYPE_*`, bytes of each
    /// segment); `false` and nothing sent if the ring has too few slots.
    pub fn send(&mut self, parts: &[Part], flags: TxFlags, gso: Option<(u8, u16)>) -> bool {
        let slots = parts.len() + usize::from(gso.is_some());
        if parts.is_empty() || slots > self.ring.free() as usize {
            return false;
        }
        let total: u32 = parts.iter().map(|part| u32::from(part.size)).sum();
        for (number, part) in parts.iter().enumerate() {
            let mut own = if number == 0 { flags } else { TxFlags::empty() };
            own.set(TxFlags::MORE_DATA, number + 1 < parts.len());
            own.set(TxFlags::EXTRA_INFO, number == 0 && gso.is_some());
            let size = if number == 0 { total as u16 } else { part.size };
            self.send_one(Part { size, ..*part }, own);
            if let (0, Some((gso_type, size))) = (number, gso) {
                self.ring.push(&Extra { more: false, kind: Kind::Gso { size, gso_type } }.into());
            }
        }
        true
    }

    /// Takes the next response: its buffer is free again, and the status is the packet's.
    ///
    /// # Errors
    /// [`Fault`]: the interface goes down.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Status>, Fault> {
        loop {
            let Some(response) = self.ring.pop()? else { return Ok(None) };
            if response.status == Status::NULL {
                continue;
            }
            match self.sent.get_mut(usize::from(response.id)) {
                Some(sent @ true) => *sent = false,
                _ => return Err(Fault::Id { ring: "netif tx", id: response.id }),
            }
            self.free.push(response.id);
            return Ok(Some(response.status));
        }
    }

    /// Publishes what was sent.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Asks to be notified once half of what the backend has is answered; `true` if anything is already.
    ///
    /// # Errors
    /// As [`Tx::reap`].
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.arm_after(self.ring.in_flight() / 2 + 1)?)
    }

    /// Buffers that the backend has.
    pub fn in_flight(&self) -> usize {
        self.sent.iter().filter(|sent| **sent).count()
    }
}
