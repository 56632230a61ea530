//! The transmit ring: assembles a guest's requests into packets, and writes their responses.
//!
//! Every slot taken gets exactly one response: a request its packet's status, an extra `NETIF_RSP_NULL`. With a
//! response log, packets are answered in the order of their requests, so that all requests without a response are still
//! in the ring for a backend that resumes. The packets of a round reuse the memory of the last one's: nothing is
//! allocated.

use crate::assemble::{Assembler, Fault, Packet};
use crate::logged_ring::LoggedRing;
use ring_abi::netif::{self, Status, TxResponse};
use ring_abi::ring::{BadMemory, Notify};
use ring_abi::shm::Memory;

/// The backend's half of a transmit ring.
#[derive(Debug)]
pub struct Tx<M, L> {
    ring: LoggedRing<netif::Tx, M, L>,
    assembler: Assembler,
    /// The complete packets of this round, followed by one that may be incomplete.
    round: Box<[Packet]>,
    /// Complete packets in `round`.
    len: usize,
    /// Packets of this round that were answered; counted only with a response log.
    answered: usize,
}

impl<M: Memory, L: Memory> Tx<M, L> {
    /// Attaches to the ring in `memory`. A round takes `limit` packets at most, or 1 if `limit` is 0.
    ///
    /// # Errors
    /// [`BadMemory`] where `memory` cannot hold a ring.
    pub fn attach(memory: M, limit: usize) -> Result<Self, BadMemory> {
        let round = vec![Packet::default(); limit.max(1) + 1].into();
        let ring = LoggedRing::attach(memory)?;
        Ok(Self { ring, assembler: Assembler::default(), round, len: 0, answered: 0 })
    }

    /// The ring, to start or resume its response log.
    pub fn logged(&mut self) -> &mut LoggedRing<netif::Tx, M, L> {
        &mut self.ring
    }

    /// Starts a round: drops the packets of the last one and assembles up to `limit` new ones. Packets that are not
    /// answered in their round are answered later by [`Tx::respond_later`].
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    pub fn poll(&mut self, limit: usize) -> Result<&[Packet], Fault> {
        let limit = limit.min(self.round.len() - 1);
        // An incomplete packet becomes the new round's first.
        self.round.swap(0, self.len);
        self.len = 0;
        self.answered = 0;
        while self.len < limit {
            let Some(slot) = self.ring.pop()? else { break };
            if self.assembler.feed(slot, &mut self.round[self.len])? {
                self.len += 1;
            }
        }
        Ok(&self.round[..self.len])
    }

    /// A packet of this round.
    ///
    /// # Panics
    /// If there is no such packet.
    #[inline]
    pub fn packet(&self, index: usize) -> &Packet {
        &self.round[..self.len][index]
    }

    /// Writes the responses of a packet of this round.
    ///
    /// # Panics
    /// If there is no such packet, or, with a response log, if an earlier packet is not answered yet.
    #[inline]
    pub fn respond(&mut self, index: usize, status: Status) {
        let packet = &self.round[..self.len][index];
        let responses = responses(packet.ids(), packet.extras(), status);
        if self.ring.is_logged() {
            assert_eq!(index, self.answered, "with a response log, packets are answered in order");
            self.answered += 1;
        }
        self.ring.push_all(responses);
    }

    /// Writes the responses of a packet of an earlier round, given the ids of its requests and the number of its
    /// extras.
    ///
    /// # Panics
    /// If there is a response log, which needs responses in order.
    #[inline]
    pub fn respond_later(&mut self, ids: &[u16], extras: u8, status: Status) {
        assert!(!self.ring.is_logged(), "with a response log, packets are answered in order");
        self.ring.push_all(responses(ids, extras, status));
    }

    /// Publishes the responses.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Sets the ring's event index, so that the next request is notified; `true` if there are requests already.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.arm()?)
    }

    /// Whether there are requests that were not taken.
    ///
    /// # Errors
    /// [`Fault`]: the guest broke the protocol.
    pub fn has_requests(&mut self) -> Result<bool, Fault> {
        self.ring.refresh()?;
        Ok(self.ring.seen() > 0)
    }

    /// Requests taken and not answered yet.
    pub fn unanswered(&self) -> u32 {
        self.ring.unanswered()
    }

    /// Slots of the ring.
    pub fn slots(&self) -> u32 {
        self.ring.size()
    }
}

#[inline]
fn responses(ids: &[u16], extras: u8, status: Status) -> impl Iterator<Item = TxResponse> + Clone {
    let requests = ids.iter().map(move |id| TxResponse { id: *id, status });
    requests.chain((0..extras).map(|_| TxResponse { id: 0, status: Status::NULL }))
}
