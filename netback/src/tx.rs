//! The transmit ring's core: a guest's requests in, packets out; answers in, responses out.
//!
//! Every slot taken is answered exactly once: a request by its packet's status, an extra by `NETIF_RSP_NULL`. With
//! a response log, packets are answered in the order they came in: what is not answered then stands in the ring for
//! a backend that takes over. Packets are assembled into places that are kept from round to round, so that nothing
//! is allocated.

use crate::assemble::{Assembler, Fault, Packet};
use crate::logged_ring::LoggedRing;
use ring_abi::netif::{self, Status, TxResponse};
use ring_abi::ring::{BadMemory, Notify};
use ring_abi::shm::Memory;

/// The backend's half of a transmit ring.
#[derive(Debug)]
pub struct Tx<M, K> {
    ring: LoggedRing<netif::Tx, M, K>,
    assembler: Assembler,
    /// Complete packets of this round, and behind them the one that is not complete yet.
    round: Box<[Packet]>,
    len: usize,
    /// Packets of this round that were answered, where order matters.
    answered: usize,
}

impl<M: Memory, K: Memory> Tx<M, K> {
    /// Attaches to the ring in `memory`; at most `limit` packets (at least 1) are taken a round.
    ///
    /// # Errors
    /// [`BadMemory`] where it cannot hold a ring.
    pub fn attach(memory: M, limit: usize) -> Result<Self, BadMemory> {
        let round = vec![Packet::default(); limit.max(1) + 1].into();
        let (ring, assembler) = (LoggedRing::attach(memory)?, Assembler::default());
        Ok(Self { ring, assembler, round, len: 0, answered: 0 })
    }

    /// The ring, to begin or take up its response log.
    pub fn logged(&mut self) -> &mut LoggedRing<netif::Tx, M, K> {
        &mut self.ring
    }

    /// Begins a round: forgets the packets of the last one, which are answered or whose requests are kept by
    /// whoever will, and assembles up to `limit` new ones.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    pub fn poll(&mut self, limit: usize) -> Result<&[Packet], Fault> {
        let limit = limit.min(self.round.len() - 1);
        // What is not complete yet goes on in the first place.
        self.round.swap(0, self.len);
        (self.len, self.answered) = (0, 0);
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
    pub fn packet(&self, place: usize) -> &Packet {
        &self.round[..self.len][place]
    }

    /// Answers a packet of this round.
    ///
    /// # Panics
    /// As [`Tx::packet`]; with a response log, if it is not this packet's turn.
    #[inline]
    pub fn answer(&mut self, place: usize, status: Status) {
        let packet = &self.round[..self.len][place];
        let responses = responses(packet.ids(), packet.extras(), status);
        if self.ring.is_logged() {
            assert_eq!(place, self.answered, "a response_log's packets are answered in order");
            self.answered += 1;
        }
        self.ring.push_all(responses);
    }

    /// Answers requests that were kept from an earlier round, with as many extras.
    ///
    /// # Panics
    /// With a response log: that is not the order.
    #[inline]
    pub fn answer_kept(&mut self, ids: &[u16], extras: u8, status: Status) {
        assert!(!self.ring.is_logged(), "a response_log's packets are answered in order");
        self.ring.push_all(responses(ids, extras, status));
    }

    /// Publishes the answers.
    #[inline]
    pub fn commit(&mut self) -> Notify {
        self.ring.commit()
    }

    /// Asks to be notified of the next request; `true` if there are some already.
    ///
    /// # Errors
    /// [`Fault`]: the guest is to be cut off.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.arm()?)
    }

    /// Requests taken and not yet answered.
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
