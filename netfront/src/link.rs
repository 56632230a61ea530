//! A connection to a back end: two rings, their buffers and event channels.
//!
//! What is sent is copied once into granted buffers, small packets into small ones that share pages: fewer pages to
//! touch here, and one grant for the back end to look up for many packets in a row.

use crate::handshake::Transport;
use crate::meta::{self, Meta};
use crate::pool::Pool;
use crate::rx::{Bad, Packet, Rx};
use crate::tx::{Fault, Part, Tx};
use arrayvec::ArrayVec;
use event_channel::{Doorbell, Ear};
use hypervisor::{Access, Hypervisor, PAGE_SIZE, Shared};
use ring_abi::DomId;
use ring_abi::netif::{SLOTS_MIN, Status, TxFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use vm_memory::VolatileSlice;

/// log2 of the octets in a small buffer: what every back end copies whole.
const SMALL: u32 = 7;
/// log2 of a page.
const LARGE: u32 = PAGE_SIZE.trailing_zeros();
/// Posted buffers are published at least this often.
const REFILL: u32 = 64;

/// What went through an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets given to the back end, and their octets.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Packets that the back end answered with an error, or says it dropped.
    pub tx_errors: u64,
    /// Packets received.
    pub rx_frames: u64,
    /// Octets of those.
    pub rx_octets: u64,
    /// Packets dropped because of what the back end said of them.
    pub rx_bad: u64,
    /// Packets longer than the buffer they were to be received into.
    pub rx_too_long: u64,
}

/// Why a link ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The back end broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The back end is gone, or the seam refused something.
    #[error(transparent)]
    Seam(#[from] hypervisor::Error),
    /// The rings' memory is none.
    #[error(transparent)]
    Memory(#[from] ring_abi::ring::BadMemory),
    /// The system refused something.
    #[error(transparent)]
    System(std::io::Error),
}

/// Rings, buffers, channels.
pub(crate) struct Link {
    tx: Tx<Shared>,
    rx: Rx<Shared>,
    small: Pool,
    large: Pool,
    buffers: Pool,
    tx_bell: Doorbell,
    rx_bell: Option<Doorbell>,
    transport: Transport,
    packet: Packet,
    /// Requests pushed and buffers posted since the last commit.
    sent: u32,
    posted: u32,
    /// There was work since the last event was taken.
    worked: bool,
    started: Instant,
}

impl Link {
    /// Makes rings and posts all receive buffers; `split` for an event channel of each ring's own.
    pub(crate) fn new(hv: &dyn Hypervisor, back: DomId, split: bool) -> Result<Self, Broken> {
        let tx = hv.share(back, 1, Access::ReadWrite)?;
        let rx = hv.share(back, 1, Access::ReadWrite)?;
        let bell = || hv.listen(back).map(|channel| Doorbell::new(channel, Duration::ZERO));
        let (tx_bell, rx_bell) = (bell()?, split.then(bell).transpose()?);
        let transport = Transport {
            tx: tx.refs()[0],
            rx: rx.refs()[0],
            tx_event: tx_bell.port(),
            rx_event: rx_bell.as_ref().map(Doorbell::port),
        };
        let (tx, rx) = (Tx::init(tx)?, Rx::init(rx)?);
        let mut link = Self {
            small: Pool::new(hv, back, tx.slots(), SMALL, Access::ReadOnly)?,
            large: Pool::new(hv, back, tx.slots(), LARGE, Access::ReadOnly)?,
            buffers: Pool::new(hv, back, rx.slots(), LARGE, Access::ReadWrite)?,
            tx,
            rx,
            tx_bell,
            rx_bell,
            transport,
            packet: Packet::default(),
            sent: 0,
            posted: 0,
            worked: true,
            started: Instant::now(),
        };
        for buffer in 0..link.rx.slots() as u16 {
            link.rx.post(buffer, link.buffers.gref(buffer));
        }
        // The back end is not there yet: it looks at everything when it comes.
        let _ = link.rx.commit();
        Ok(link)
    }

    /// What the back end has to know.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Listens to the channels.
    pub(crate) fn listen(&self, ear: &Ear) -> io::Result<()> {
        self.bells().try_for_each(|bell| ear.add(bell))
    }

    /// Listens to them no longer.
    pub(crate) fn unlisten(&self, ear: &Ear) {
        self.bells().for_each(|bell| ear.remove(bell));
    }

    /// Sends a packet whose octets `fill` writes, piece by piece in order; `false` if there is no room now.
    ///
    /// # Panics
    /// If the packet is longer than 64 KiB - 1 octets: the caller has checked.
    #[inline]
    pub(crate) fn send(
        &mut self,
        len: usize,
        meta: &Meta,
        counters: &mut Counters,
        mut fill: impl FnMut(usize, VolatileSlice<'_>),
    ) -> Result<bool, Broken> {
        assert!(len <= ring_abi::netif::MAX_TX_SIZE, "a packet of {len} octets");
        let needed = len.div_ceil(PAGE_SIZE).max(1);
        if self.tx.room() < needed {
            self.reap(counters)?;
            if self.tx.room() < needed {
                return Ok(false);
            }
        }
        let (flags, gso) = meta::to_back(meta);
        match self.tx.reserve() {
            Some(buffer) if len <= 1 << SMALL && gso.is_none() => {
                fill(0, self.small.slice(buffer, 0, len));
                let (gref, offset) = (self.small.gref(buffer), self.small.offset(buffer));
                self.tx.send_one(Part { buffer, gref, offset, size: len as u16 }, flags);
            }
            Some(buffer) => self.send_pages(buffer, len, flags, gso, fill),
            None => return Ok(false),
        }
        self.sent += 1;
        counters.tx_frames += 1;
        counters.tx_octets += len as u64;
        Ok(true)
    }

    fn send_pages(
        &mut self,
        first: u16,
        len: usize,
        flags: TxFlags,
        gso: Option<(u8, u16)>,
        mut fill: impl FnMut(usize, VolatileSlice<'_>),
    ) {
        let mut parts: ArrayVec<Part, SLOTS_MIN> = ArrayVec::new();
        let mut next = Some(first);
        for at in (0..len).step_by(PAGE_SIZE) {
            // `room` has promised as many as are needed.
            let Some(buffer) = next.take().or_else(|| self.tx.reserve()) else { break };
            let size = (len - at).min(PAGE_SIZE);
            fill(at, self.large.slice(buffer, 0, size));
            parts.push(Part { buffer, gref: self.large.gref(buffer), offset: 0, size: size as u16 });
        }
        if !self.tx.send(&parts, flags, gso) {
            parts.iter().for_each(|part| self.tx.cancel(part.buffer));
        }
    }

    fn reap(&mut self, counters: &mut Counters) -> Result<(), Broken> {
        while let Some(status) = self.tx.reap()? {
            self.worked = true;
            counters.tx_errors += u64::from(status != Status::OKAY);
        }
        Ok(())
    }

    /// Receives the next packet into `into`; its octets and what is said of it.
    #[inline]
    pub(crate) fn recv(
        &mut self,
        into: &mut [u8],
        counters: &mut Counters,
    ) -> Result<Option<(usize, Meta)>, Broken> {
        while self.rx.poll(&mut self.packet)? {
            self.worked = true;
            let taken = self.take(into, counters);
            for buffer in self.packet.buffers() {
                self.rx.post(*buffer, self.buffers.gref(*buffer));
                self.posted += 1;
            }
            if self.posted >= REFILL {
                self.commit_rx()?;
            }
            if taken.is_some() {
                return Ok(taken);
            }
        }
        Ok(None)
    }

    /// Copies the packet out, once; what is said of it is read from the copy.
    #[inline]
    fn take(&self, into: &mut [u8], counters: &mut Counters) -> Option<(usize, Meta)> {
        let bad: Option<Bad> = self.packet.bad();
        let len = self.packet.size();
        if bad.is_some() {
            counters.rx_bad += 1;
            return None;
        }
        if len > into.len() {
            counters.rx_too_long += 1;
            return None;
        }
        let mut at = 0;
        for piece in self.packet.pieces() {
            let size = usize::from(piece.len);
            self.buffers.slice(piece.buffer, piece.offset, size).copy_to(&mut into[at..at + size]);
            at += size;
        }
        counters.rx_frames += 1;
        counters.rx_octets += len as u64;
        Some((len, meta::from_back(&self.packet, &into[..len])))
    }

    /// Publishes what was sent and posted, and wakes the back end if it wants to be.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        if self.posted > 0 {
            self.commit_rx()?;
        }
        if std::mem::take(&mut self.sent) > 0 {
            self.tx_bell.want(self.tx.commit());
        }
        Ok(self.tx_bell.flush().map(|_| ())?)
    }

    fn commit_rx(&mut self) -> Result<(), Broken> {
        self.posted = 0;
        let bell = self.rx_bell.as_mut().unwrap_or(&mut self.tx_bell);
        bell.want(self.rx.commit());
        Ok(bell.flush().map(|_| ())?)
    }

    /// Asks for an event for packets received and, with `room`, for room to send; `true` if there is either. Afterwards
    /// the back end is listened to, unless it has rung too often for nothing (XSA-391).
    pub(crate) fn arm(&mut self, room: bool, ear: &mut Ear) -> Result<bool, Broken> {
        self.slow_down(ear)?;
        self.take_events(ear)?;
        Ok(self.rx.arm()? | (room && self.tx.arm()?))
    }

    fn slow_down(&mut self, ear: &mut Ear) -> Result<(), Broken> {
        let (now, worked) = (self.started.elapsed(), std::mem::take(&mut self.worked));
        let bells = [Some(&mut self.tx_bell), self.rx_bell.as_mut()];
        let pause = bells.into_iter().flatten().filter_map(|bell| bell.worked(worked, now)).max();
        if let Some(pause) = pause.filter(|_| !ear.is_covered()) {
            tracing::debug!(?pause, "the back end rings for nothing");
            ear.cover(self.bells(), pause).map_err(Broken::System)?;
        }
        Ok(())
    }

    /// Takes events.
    ///
    /// # Errors
    /// [`Broken::Seam`] once the back end's end of a channel is gone.
    pub(crate) fn take_events(&mut self, ear: &mut Ear) -> Result<(), Broken> {
        // While they are not listened to they need not be taken either.
        if ear.uncover(self.bells()).map_err(Broken::System)? {
            self.tx_bell.take()?;
            if let Some(bell) = &mut self.rx_bell {
                bell.take()?;
            }
        }
        Ok(())
    }

    fn bells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.tx_bell), self.rx_bell.as_ref()].into_iter().flatten().map(|bell| bell.as_fd())
    }
}
