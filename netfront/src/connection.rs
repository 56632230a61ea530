// Not a core: does I/O or calls a hypervisor.

//! A connection to a backend: two rings, their buffers and event channels.
//!
//! A packet to be sent is copied once into granted buffers. Small packets go into small buffers that share pages: the
//! CPU touches fewer pages, and a backend looks up one grant for many packets in a row.

use crate::buffer_pool::BufferPool;
use crate::error::ConnectionError;
use crate::handshake::QueueInfo;
use crate::meta::{self, Meta};
use crate::received::{ReceivedFrame, ReceivedPage};
use crate::rx::{self, Packet, Rx};
use crate::rx_buffers::RxBuffers;
use crate::stats::{DropReason, Stats};
use crate::tx::{Fragment, Tx};
use arrayvec::ArrayVec;
use event_channel::{Notifier, NotifierPair, WaitChannel, WaitEventChannels};
use event_loop::{EventSet, Interest};
use grant_table::{Access, GrantTable, Shared};
use ring_abi::DomId;
use ring_abi::PAGE_SIZE;
use ring_abi::netif::{MAX_TX_SIZE, SLOTS_MIN, Status, TxFlags};
use std::io;
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// log2 of the bytes in a small buffer: what every known backend copies rather than maps.
const SMALL: u32 = 7;
/// log2 of a page.
const LARGE: u32 = PAGE_SIZE.trailing_zeros();
/// Posted buffers are published at least this often.
const REFILL: u32 = 64;

/// How a connection is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// An event channel for each ring.
    pub(crate) split: bool,
    /// Receive buffers accept pages.
    pub(crate) flip: bool,
}

/// The pages of an interface that no connection uses: granted once, so that a backend that connects again and again, and keeps
/// mapped what it was granted, uses up no more of them.
#[derive(Default)]
pub(crate) struct UnusedPages {
    rings: Vec<Shared>,
    small: Option<BufferPool>,
    large: Option<BufferPool>,
    /// Of receive buffers that are copied out of.
    receive: Option<BufferPool>,
}

impl UnusedPages {
    /// Drops the pages of a backend whose domain has died, which are nobody's any more.
    fn retain_live(&mut self) {
        self.rings.retain(Shared::is_live);
        for pool in [&mut self.small, &mut self.large, &mut self.receive] {
            pool.take_if(|pool| !pool.is_live());
        }
    }

    fn ring(&mut self, grants: &dyn GrantTable, back: DomId) -> grant_table::Result<Shared> {
        self.rings.pop().map_or_else(|| grants.share(back, 1, Access::ReadWrite), Ok)
    }
}

/// Rings, buffers and event channels.
pub(crate) struct Connection {
    tx: Tx<Shared>,
    rx: Rx<Shared>,
    small: BufferPool,
    large: BufferPool,
    buffers: RxBuffers,
    notifiers: NotifierPair<Box<dyn WaitChannel>>,
    info: QueueInfo,
    packet: Packet,
    /// Packets pushed since the last commit of the transmit ring.
    sent: u32,
    /// Buffers posted since the last commit of the receive ring.
    posted: u32,
    /// The device's span, for log lines from the data path.
    span: tracing::Span,
}

impl Connection {
    /// Grants rings and buffers to `back`, the `unused` ones if they are, and posts all receive buffers. Events are counted in
    /// `stats`.
    pub(crate) fn new(
        grants: &Arc<dyn GrantTable>,
        channels: &dyn WaitEventChannels,
        back: DomId,
        manner: Manner,
        stats: &Stats,
        unused: &mut UnusedPages,
    ) -> Result<Self, ConnectionError> {
        let Manner { split, flip } = manner;
        unused.retain_live();
        let tx_page = unused.ring(&**grants, back)?;
        let rx_page = unused.ring(&**grants, back)?;
        let pool = |unused: &mut Option<BufferPool>, count, shift, access| match unused.take() {
            Some(pool) => Ok(pool),
            None => BufferPool::new(&**grants, back, count, shift, access),
        };
        let notifier = || channels.alloc_unbound(back).map(Notifier::new);
        let mut notifiers = NotifierPair::new(notifier()?, split.then(notifier).transpose()?);
        notifiers.count_in(&stats.events);
        let info = QueueInfo {
            tx_ring: tx_page.refs()[0],
            rx_ring: rx_page.refs()[0],
            tx_event: notifiers.tx_port(),
            rx_event: notifiers.rx_port(),
        };
        let tx = Tx::init(tx_page)?;
        let rx = Rx::init(rx_page)?;
        let mut connection = Self {
            small: pool(&mut unused.small, tx.slots(), SMALL, Access::ReadOnly)?,
            large: pool(&mut unused.large, tx.slots(), LARGE, Access::ReadOnly)?,
            buffers: match flip {
                true => RxBuffers::flipped(grants, back, rx.slots())?,
                false => RxBuffers::Copied(pool(&mut unused.receive, rx.slots(), LARGE, Access::ReadWrite)?),
            },
            tx,
            rx,
            notifiers,
            info,
            packet: Packet::default(),
            sent: 0,
            posted: 0,
            span: tracing::Span::current(),
        };
        for buffer in 0..connection.rx.slots() as u16 {
            connection.rx.post(buffer, connection.buffers.gref(buffer));
        }
        // Needs no event: a backend polls both rings when it connects.
        let _ = connection.rx.commit();
        Ok(connection)
    }

    /// Gives back the pages, for the next connection.
    pub(crate) fn give_back(self, unused: &mut UnusedPages) {
        unused.rings.extend([self.rx.into_memory(), self.tx.into_memory()]);
        unused.small = Some(self.small);
        unused.large = Some(self.large);
        if let RxBuffers::Copied(pool) = self.buffers {
            unused.receive = Some(pool);
        }
    }

    /// Grant references and ports to be published.
    pub(crate) fn info(&self) -> &QueueInfo {
        &self.info
    }

    /// Adds the event channels to `event_set`, by `token`.
    pub(crate) fn register(&self, event_set: &EventSet, token: u64) -> io::Result<()> {
        self.notifiers.register(event_set, token)
    }

    /// Removes the event channels from `event_set`.
    pub(crate) fn unregister(&self, event_set: &EventSet) {
        self.notifiers.unregister(event_set);
    }

    /// Sends a packet whose bytes `fill` writes, fragment by fragment in order; `false` if the ring is full.
    ///
    /// # Panics
    /// If the packet is longer than [`MAX_TX_SIZE`], which the caller has checked.
    #[inline]
    pub(crate) fn send(
        &mut self,
        len: usize,
        meta: &Meta,
        stats: &Stats,
        mut fill: impl FnMut(usize, VolatileSlice<'_>),
    ) -> Result<bool, ConnectionError> {
        assert!(len <= MAX_TX_SIZE, "a packet of {len} bytes");
        let needed = len.div_ceil(PAGE_SIZE).max(1);
        if self.tx.available() < needed {
            self.reap(stats)?;
            if self.tx.available() < needed {
                return Ok(false);
            }
        }
        let (flags, gso) = meta::to_back(meta);
        match self.tx.reserve() {
            Some(buffer) if len <= 1 << SMALL && gso.is_none() => {
                fill(0, self.small.slice(buffer, 0, len));
                let gref = self.small.gref(buffer);
                let offset = self.small.offset(buffer);
                self.tx.send_one(Fragment { buffer, gref, offset, size: len as u16 }, flags);
            }
            Some(buffer) => self.send_pages(buffer, len, flags, gso, fill),
            None => return Ok(false),
        }
        self.sent += 1;
        stats.sent(len);
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
        let mut fragments: ArrayVec<Fragment, SLOTS_MIN> = ArrayVec::new();
        let mut next = Some(first);
        for at in (0..len).step_by(PAGE_SIZE) {
            // `available` counted as many buffers as are needed.
            let Some(buffer) = next.take().or_else(|| self.tx.reserve()) else { break };
            let size = (len - at).min(PAGE_SIZE);
            fill(at, self.large.slice(buffer, 0, size));
            fragments.push(Fragment { buffer, gref: self.large.gref(buffer), offset: 0, size: size as u16 });
        }
        if !self.tx.send(&fragments, flags, gso) {
            fragments.iter().for_each(|fragment| self.tx.cancel(fragment.buffer));
        }
    }

    fn reap(&mut self, stats: &Stats) -> Result<(), ConnectionError> {
        while let Some(status) = self.tx.reap()? {
            self.notifiers.worked(true);
            if status != Status::OKAY {
                stats.send_failed();
            }
        }
        Ok(())
    }

    /// Receives the next packet into `into`: its length and metadata.
    #[inline]
    pub(crate) fn recv(
        &mut self,
        into: &mut [u8],
        stats: &Stats,
    ) -> Result<Option<(usize, Meta)>, ConnectionError> {
        while self.rx.poll(&mut self.packet)? {
            self.notifiers.worked(true);
            self.buffers.take(self.packet.buffers())?;
            let received = self.copy_packet(into, stats);
            self.post_again()?;
            if received.is_some() {
                return Ok(received);
            }
        }
        Ok(None)
    }

    /// Receives the next packet with the pages that it is in, of a connection whose pages are flipped.
    pub(crate) fn recv_pages(
        &mut self,
        into: &mut ReceivedFrame,
        stats: &Stats,
    ) -> Result<Option<Meta>, ConnectionError> {
        while self.rx.poll(&mut self.packet)? {
            self.notifiers.worked(true);
            self.buffers.take(self.packet.buffers())?;
            let received = self.move_packet(into, stats);
            self.post_again()?;
            if received.is_some() {
                return Ok(received);
            }
        }
        Ok(None)
    }

    /// Posts the packet's buffers again, or has them wait for pages to be given up.
    #[inline]
    fn post_again(&mut self) -> Result<(), ConnectionError> {
        for buffer in self.packet.buffers() {
            if self.buffers.release(*buffer) {
                self.rx.post(*buffer, self.buffers.gref(*buffer));
            }
            self.posted += 1;
        }
        if self.posted >= REFILL { self.commit_rx() } else { Ok(()) }
    }

    /// Moves the packet's pages out of its buffers, unless it is to be dropped.
    fn move_packet(&mut self, into: &mut ReceivedFrame, stats: &Stats) -> Option<Meta> {
        into.pages.clear();
        if let Some(reason) = self.packet.drop_reason() {
            stats.dropped(reason);
            return None;
        }
        for rx::Fragment { buffer, offset, len } in self.packet.fragments() {
            let page = self.buffers.move_out(*buffer);
            let Some(page) = page.and_then(|page| ReceivedPage::new(page, *offset, *len)) else {
                stats.dropped(DropReason::NoPage);
                return None;
            };
            // A packet has no more fragments than there is room for.
            let _ = into.pages.try_push(page);
        }
        stats.received(self.packet.size());
        Some(meta::from_back(&self.packet))
    }

    /// Copies the packet out of its buffers, unless it is to be dropped.
    #[inline]
    fn copy_packet(&self, into: &mut [u8], stats: &Stats) -> Option<(usize, Meta)> {
        let len = self.packet.size();
        if let Some(reason) = self.packet.drop_reason() {
            stats.dropped(reason);
            return None;
        }
        if len > into.len() {
            stats.dropped(DropReason::TooLong);
            return None;
        }
        let mut at = 0;
        for fragment in self.packet.fragments() {
            let size = usize::from(fragment.len);
            let Some(bytes) = self.buffers.slice(fragment) else {
                stats.dropped(DropReason::NoPage);
                return None;
            };
            bytes.copy_to(&mut into[at..at + size]);
            at += size;
        }
        stats.received(len);
        Some((len, meta::from_back(&self.packet)))
    }

    /// Publishes requests and posted buffers, and notifies the backend if it asked for that.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.posted > 0 || self.buffers.is_short() {
            self.commit_rx()?;
        }
        if std::mem::take(&mut self.sent) > 0 {
            self.notifiers.want_tx(self.tx.commit());
        }
        Ok(self.notifiers.flush()?)
    }

    fn commit_rx(&mut self) -> Result<(), ConnectionError> {
        self.posted = 0;
        let rx = &mut self.rx;
        self.buffers.renew(|buffer, gref| rx.post(buffer, gref))?;
        self.notifiers.want_rx(self.rx.commit());
        Ok(self.notifiers.flush()?)
    }

    /// Whether pages are flipped.
    pub(crate) fn flips(&self) -> bool {
        self.buffers.are_flipped()
    }

    /// Sets the event indexes of the rings for what is needed: input of the receive ring, room of the transmit ring. `true` if
    /// there are packets, or free slots, already.
    pub(crate) fn arm(&mut self, needs: Interest, event_set: &EventSet) -> Result<bool, ConnectionError> {
        // Against a backend that notifies without work (XSA-391).
        if let Some(pause) = self.notifiers.limit_events(event_set)? {
            self.span
                .in_scope(|| tracing::debug!(?pause, "masking events: the backend notifies without work"));
        }
        Ok((needs.input && self.rx.arm()?) | (needs.room && self.tx.arm()?))
    }

    /// Whether there is what [`Connection::arm`] has requested events for.
    pub(crate) fn is_ready(&mut self, needs: Interest) -> Result<bool, ConnectionError> {
        Ok((needs.input && self.rx.has_responses()?) || (needs.room && self.tx.has_room()?))
    }

    /// Takes pending events; `false` if there were none.
    ///
    /// # Errors
    /// [`ConnectionError::Channel`] once the backend has closed its end of a channel.
    pub(crate) fn take_events(&mut self, event_set: &EventSet) -> Result<bool, ConnectionError> {
        Ok(self.notifiers.take_events(event_set)?)
    }
}
