//! The transmit ring: sends packets and takes their buffers back.
//!
//! A buffer is known by its number, which is also its request's id. It has one owner at any time: the free list, the
//! caller who reserved it, or the backend (XSA-405).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use ring_abi::GrantRef;
use ring_abi::netif::extra::{Extra, Kind};
use ring_abi::netif::{self, Status, TxFlags, TxRequest};
use ring_abi::ring::{BadMemory, Front, Notify, Protocol};
use ring_abi::shm::Memory;

/// The backend broke the protocol: the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A ring's indexes are impossible.
    #[error(transparent)]
    Ring(#[from] ring_abi::ring::Fault),
    /// A response for a buffer that the backend does not own.
    #[error("{ring}: the backend answered buffer {id}, which is not in flight")]
    Id {
        /// The ring's [`Protocol::NAME`].
        ring: &'static str,
        /// The response's id.
        id: u16,
    },
}

/// Bytes of a packet in one buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The buffer, from [`Tx::reserve`].
    pub buffer: u16,
    /// The grant of the page that holds the buffer.
    pub gref: GrantRef,
    /// Offset of the first byte in the page.
    pub offset: u16,
    /// Bytes.
    pub size: u16,
}

/// The frontend's half of a transmit ring.
#[derive(Debug)]
pub struct Tx<M> {
    ring: Front<netif::Tx, M>,
    /// A stack: the buffer freed last is used next, since the CPU's caches may still hold it.
    free: Vec<u16>,
    /// For each buffer, whether the backend owns it.
    sent: Box<[bool]>,
    /// Responses for which an event was requested.
    armed_for: u32,
}

impl<M: Memory> Tx<M> {
    /// Initialises a ring in `memory`, with as many free buffers as slots.
    ///
    /// # Errors
    /// [`BadMemory`] where `memory` cannot hold a ring.
    pub fn init(memory: M) -> Result<Self, BadMemory> {
        let ring = Front::init(memory)?;
        let size = ring.size() as u16;
        Ok(Self {
            free: (0..size).rev().collect(),
            sent: vec![false; size.into()].into(),
            armed_for: 0,
            ring,
        })
    }

    /// Gives the ring's memory back.
    pub fn into_memory(self) -> M {
        self.ring.into_memory()
    }

    /// Slots of the ring, which is also the number of buffers.
    pub fn slots(&self) -> usize {
        self.sent.len()
    }

    /// Fragments that can be sent now: free slots and free buffers, less one that is kept for an extra.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len().min(self.ring.free() as usize).saturating_sub(1)
    }

    /// Takes a buffer from the free list. The caller owns it until it is sent or cancelled.
    #[inline]
    pub fn reserve(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Returns a reserved buffer to the free list.
    pub fn cancel(&mut self, buffer: u16) {
        debug_assert!(!self.sent[usize::from(buffer)], "a buffer that the backend has");
        self.free.push(buffer);
    }

    /// Sends a packet in one buffer; `false` and nothing sent if the ring is full. [`Tx::commit`] publishes it.
    #[inline]
    pub fn send_one(&mut self, fragment: Fragment, flags: TxFlags) -> bool {
        let Fragment { buffer, gref, offset, size } = fragment;
        let pushed = self.ring.push(&TxRequest { gref, offset, flags, id: buffer, size }.into());
        self.sent[usize::from(buffer)] |= pushed;
        pushed
    }

    /// Sends a packet in several buffers, with a segmentation `gso` (`XEN_NETIF_GSO_TYPE_*`, bytes of each segment);
    /// `false` and nothing sent if the ring has too few free slots.
    pub fn send(&mut self, fragments: &[Fragment], flags: TxFlags, gso: Option<(u8, u16)>) -> bool {
        let slots = fragments.len() + usize::from(gso.is_some());
        if fragments.is_empty() || slots > self.ring.free() as usize {
            return false;
        }
        let total: u32 = fragments.iter().map(|fragment| u32::from(fragment.size)).sum();
        for (number, fragment) in fragments.iter().enumerate() {
            let is_first = number == 0;
            let mut own_flags = if is_first { flags } else { TxFlags::empty() };
            own_flags.set(TxFlags::MORE_DATA, number + 1 < fragments.len());
            own_flags.set(TxFlags::EXTRA_INFO, is_first && gso.is_some());
            // The first request has the size of the whole packet.
            let size = if is_first { total as u16 } else { fragment.size };
            self.send_one(Fragment { size, ..*fragment }, own_flags);
            if let (true, Some((gso_type, size))) = (is_first, gso) {
                self.ring.push(&Extra { more: false, kind: Kind::Gso { size, gso_type } }.into());
            }
        }
        true
    }

    /// Takes the next response, frees its buffer, and returns its status, which is the whole packet's.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Status>, Fault> {
        loop {
            let Some(response) = self.ring.pop()? else { return Ok(None) };
            // The response to an extra's slot frees no buffer.
            if response.status == Status::NULL {
                continue;
            }
            match self.sent.get_mut(usize::from(response.id)) {
                Some(sent @ true) => *sent = false,
                _ => return Err(Fault::Id { ring: netif::Tx::NAME, id: response.id }),
            }
            self.free.push(response.id);
            return Ok(Some(response.status));
        }
    }

    /// Publishes the requests.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Sets the ring's event index, so that the backend notifies once it has answered half of the requests in flight;
    /// `true` if there are responses already.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        self.armed_for = self.ring.in_flight() / 2 + 1;
        Ok(self.ring.arm_after(self.armed_for)?)
    }

    /// Whether as many requests are answered as [`Tx::arm`] has requested an event for, if no response was taken since.
    ///
    /// # Errors
    /// [`Fault`]: the backend broke the protocol.
    pub fn has_room(&mut self) -> Result<bool, Fault> {
        self.ring.refresh()?;
        Ok(self.ring.seen() >= self.armed_for)
    }

    /// Buffers that the backend owns.
    pub fn in_flight(&self) -> usize {
        self.sent.iter().filter(|sent| **sent).count()
    }
}
