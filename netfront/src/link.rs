//! A connection to a backend: two rings, their buffers and event channels.
//!
//! What is sent is copied once into granted buffers, small packets into small ones that share pages: fewer pages to
//! touch here, and one grant for the backend to look up for many packets in a row.

use crate::handshake::Transport;
use crate::meta::{self, Meta};
use crate::pool::Pool;
use crate::rx::{Bad, Packet, Rx};
use crate::tx::{Fault, Part, Tx};
use arrayvec::ArrayVec;
use event_channel::{EventSet, Notifier};
use hypervisor::{Access, Hypervisor, PAGE_SIZE, Shared};
use ring_abi::DomId;
use ring_abi::netif::{SLOTS_MIN, Status, TxFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use vm_memory::VolatileSlice;

/// log2 of the bytes in a small buffer: what every backend copies whole.
const SMALL: u32 = 7;
/// log2 of a page.
const LARGE: u32 = PAGE_SIZE.trailing_zeros();
/// Posted buffers are published at least this often.
const REFILL: u32 = 64;

/// What went through an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets given to the backend, and their bytes.
    pub tx_frames: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Packets that the backend answered with an error, or says it dropped.
    pub tx_errors: u64,
    /// Packets received.
    pub rx_frames: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Packets dropped because of what the backend said of them.
    pub rx_bad: u64,
    /// Packets longer than the buffer they were to be received into.
    pub rx_too_long: u64,
}

/// Why a link ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The backend broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The backend is gone, or the seam refused something.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
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
    tx_notifier: Notifier,
    rx_notifier: Option<Notifier>,
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
        let notifier = || hv.alloc_unbound(back).map(|channel| Notifier::new(channel, Duration::ZERO));
        let (tx_notifier, rx_notifier) = (notifier()?, split.then(notifier).transpose()?);
        let transport = Transport {
            tx: tx.refs()[0],
            rx: rx.refs()[0],
            tx_event: tx_notifier.port(),
            rx_event: rx_notifier.as_ref().map(Notifier::port),
        };
        let (tx, rx) = (Tx::init(tx)?, Rx::init(rx)?);
        let mut link = Self {
            small: Pool::new(hv, back, tx.slots(), SMALL, Access::ReadOnly)?,
            large: Pool::new(hv, back, tx.slots(), LARGE, Access::ReadOnly)?,
            buffers: Pool::new(hv, back, rx.slots(), LARGE, Access::ReadWrite)?,
            tx,
            rx,
            tx_notifier,
            rx_notifier,
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
        // The backend is not there yet: it looks at everything when it comes.
        let _ = link.rx.commit();
        Ok(link)
    }

    /// What the backend has to know.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Listens to the channels.
    pub(crate) fn listen(&self, event_set: &EventSet) -> io::Result<()> {
        self.notifiers().try_for_each(|notifier| event_set.add(notifier))
    }

    /// Listens to them no longer.
    pub(crate) fn unlisten(&self, event_set: &EventSet) {
        self.notifiers().for_each(|notifier| event_set.remove(notifier));
    }

    /// Sends a packet whose bytes `fill` writes, piece by piece in order; `false` if there is no room now.
    ///
    /// # Panics
    /// If the packet is longer than 64 KiB - 1 bytes: the caller has checked.
    #[inline]
    pub(crate) fn send(
        &mut self,
        len: usize,
        meta: &Meta,
        counters: &mut Counters,
        mut fill: impl FnMut(usize, VolatileSlice<'_>),
    ) -> Result<bool, Broken> {
        assert!(len <= ring_abi::netif::MAX_TX_SIZE, "a packet of {len} bytes");
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
        counters.tx_bytes += len as u64;
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

    /// Receives the next packet into `into`; its bytes and what is said of it.
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
        counters.rx_bytes += len as u64;
        Some((len, meta::from_back(&self.packet, &into[..len])))
    }

    /// Publishes what was sent and posted, and wakes the backend if it wants to be.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        if self.posted > 0 {
            self.commit_rx()?;
        }
        if std::mem::take(&mut self.sent) > 0 {
            self.tx_notifier.want(self.tx.commit());
        }
        Ok(self.tx_notifier.flush().map(|_| ())?)
    }

    fn commit_rx(&mut self) -> Result<(), Broken> {
        self.posted = 0;
        let notifier = self.rx_notifier.as_mut().unwrap_or(&mut self.tx_notifier);
        notifier.want(self.rx.commit());
        Ok(notifier.flush().map(|_| ())?)
    }

    /// Asks for an event for packets received and, with `room`, for room to send; `true` if there is either.
    /// Afterwards the backend is listened to, unless it has rung too often for nothing (XSA-391).
    pub(crate) fn arm(&mut self, room: bool, event_set: &mut EventSet) -> Result<bool, Broken> {
        self.slow_down(event_set)?;
        self.take_events(event_set)?;
        Ok(self.rx.arm()? | (room && self.tx.arm()?))
    }

    fn slow_down(&mut self, event_set: &mut EventSet) -> Result<(), Broken> {
        let (now, worked) = (self.started.elapsed(), std::mem::take(&mut self.worked));
        let notifiers = [Some(&mut self.tx_notifier), self.rx_notifier.as_mut()];
        let pause = notifiers.into_iter().flatten().filter_map(|notifier| notifier.worked(worked, now)).max();
        if let Some(pause) = pause.filter(|_| !event_set.is_masked()) {
            tracing::debug!(?pause, "the backend rings for nothing");
            event_set.mask(self.notifiers(), pause).map_err(Broken::System)?;
        }
        Ok(())
    }

    /// Takes events.
    ///
    /// # Errors
    /// [`Broken::Hypervisor`] once the backend's end of a channel is gone.
    pub(crate) fn take_events(&mut self, event_set: &mut EventSet) -> Result<(), Broken> {
        // While they are not listened to they need not be taken either.
        if event_set.unmask(self.notifiers()).map_err(Broken::System)? {
            self.tx_notifier.take()?;
            if let Some(notifier) = &mut self.rx_notifier {
                notifier.take()?;
            }
        }
        Ok(())
    }

    fn notifiers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.tx_notifier), self.rx_notifier.as_ref()]
            .into_iter()
            .flatten()
            .map(|notifier| notifier.as_fd())
    }
}
