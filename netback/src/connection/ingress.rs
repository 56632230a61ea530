// Not a core: does I/O or calls a hypervisor.

//! Guest to bridge: turns packets of the transmit ring into frames.
//!
//! The heads (128 bytes) of all packets of a round are copied by one batch of grant copies into the frames' private
//! memory and checked there. A payload beyond its head is [`mapped`](super::mapped) or [`copied`](super::copied).

use crate::ExitReason;
use crate::assemble::{Fault, Fragment, Packet};
use crate::copy_batch::CopyBatch;
use crate::offload;
use crate::stats::Stats;
use crate::tx::Tx;
use bridge::{Batch, DropReason, Frame, HEAD};
use grant_table::{Contiguous, CopyOp, CopyPtr, GrantTable};
use inflight::InflightRegion;
use ring_abi::DomId;
use ring_abi::netif::Status;
use ring_abi::ring::Notify;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::copied::Copied;
use super::mapped::{Mapped, PendingResponse};

/// How payloads reach frames.
enum Payload {
    /// They stay in the guest's pages, and packets are answered once no frame points there.
    Mapped(Mapped),
    /// They are copied with the heads, and packets are answered at once, in order.
    Copied(Copied),
}

/// A packet of this round that has a frame.
#[derive(Clone, Copy)]
struct PendingPacket {
    /// Its index in the round.
    index: u16,
    /// Copies of its head and payload.
    copies: u16,
    /// Those of `copies` that failed.
    failed: u16,
}

/// The transmit side of a vif.
pub(super) struct Ingress {
    grants: Arc<dyn GrantTable>,
    guest: DomId,
    tx: Tx<Contiguous, InflightRegion>,
    payload: Payload,
    stats: Arc<Stats>,
    pending: Vec<PendingPacket>,
    copies: CopyBatch,
    /// Responses were written since the last commit.
    dirty: bool,
}

impl Ingress {
    /// `copied` copies payloads instead of mapping them, and so answers packets in order.
    pub(super) fn new(
        grants: Arc<dyn GrantTable>,
        guest: DomId,
        tx: Tx<Contiguous, InflightRegion>,
        burst: usize,
        copied: bool,
        stats: Arc<Stats>,
    ) -> io::Result<Self> {
        let payload = match copied {
            true => Payload::Copied(Copied::new()?),
            false => Payload::Mapped(Mapped::new(grants.clone(), guest, tx.slots() as u16, stats.clone())?),
        };
        Ok(Self {
            grants,
            guest,
            tx,
            payload,
            stats,
            pending: Vec::with_capacity(burst),
            copies: CopyBatch::with_capacity(burst * 2),
            dirty: false,
        })
    }

    /// Answers packets whose mapped payload no frame points to any more.
    #[inline]
    pub(super) fn reap(&mut self) {
        let Payload::Mapped(mapped) = &mut self.payload else { return };
        while let Some(PendingResponse { ids, extras }) = mapped.reap() {
            self.tx.respond_later(&ids, extras, Status::OKAY);
            self.dirty = true;
        }
    }

    /// Appends the next packets to `into`, as many as fit.
    pub(super) fn recv(&mut self, into: &mut Batch) -> Result<(), ExitReason> {
        let start = into.len();
        let count = self.tx.poll(into.room())?.len();
        if count == 0 {
            return Ok(());
        }
        self.admit(count, into);
        let copied = self.copy(&mut into.frames_mut()[start..]);
        let bad = self.finish(count, &mut into.frames_mut()[start..]);
        if bad {
            into.retain(|frame| !frame.is_empty());
        }
        let bytes = into.frames()[start..].iter().map(|frame| frame.len() as u64).sum();
        self.stats.port.rx((into.len() - start) as u64, bytes);
        copied
    }

    /// Appends a frame to `into` for every packet that is not refused, with a head of the right length still to be
    /// filled.
    fn admit(&mut self, count: usize, into: &mut Batch) {
        self.pending.clear();
        for index in 0..count {
            let packet = self.tx.packet(index);
            if packet.refusal().is_some() {
                continue;
            }
            // As many frames fit as packets were polled.
            if let Some(frame) = into.slot() {
                frame.fill_head(packet.size().min(HEAD));
                self.pending.push(PendingPacket { index: index as u16, copies: 0, failed: 0 });
            }
        }
    }

    /// Copies the heads of all pending packets, and their payloads unless those are mapped, by one hypervisor call.
    fn copy(&mut self, frames: &mut [Frame]) -> Result<(), ExitReason> {
        let mut list = self.copies.start();
        for (pending, frame) in self.pending.iter_mut().zip(&mut *frames) {
            let before = list.len();
            let packet = self.tx.packet(pending.index.into());
            add_head_copies(self.guest, packet.fragments(), frame.head_mut(), &mut list);
            if let Payload::Copied(copied) = &mut self.payload {
                copied.add_copies(self.guest, packet, &mut list);
            }
            pending.copies = (list.len() - before) as u16;
        }
        let submitted = list.submit(&*self.grants);
        let mut at = 0;
        for pending in &mut self.pending {
            let copies = &list[at..at + usize::from(pending.copies)];
            at += copies.len();
            pending.failed =
                copies.iter().filter(|c| submitted.is_err() || !c.status.is_okay()).count() as u16;
        }
        if submitted.is_ok() {
            self.stats.copied.add(list.len() as u64);
        }
        Ok(submitted?)
    }

    /// Attaches payloads, reads headers and answers packets in order; `true` if any frame was emptied, to be removed.
    fn finish(&mut self, count: usize, frames: &mut [Frame]) -> bool {
        let mut bad = false;
        let mut all = self.pending.iter().zip(frames).peekable();
        for index in 0..count {
            let Some((pending, frame)) = all.next_if(|(pending, _)| usize::from(pending.index) == index)
            else {
                // The packet was refused.
                self.stats.port.lost(DropReason::Malformed, 1);
                self.tx.respond(index, Status::ERROR);
                self.dirty = true;
                continue;
            };
            let packet = self.tx.packet(index);
            if let Err(reason) = self.payload.attach(packet, pending.failed == 0, frame) {
                bad = true;
                frame.clear();
                self.stats.port.lost(reason, 1);
                self.tx.respond(index, Status::ERROR);
                self.dirty = true;
                continue;
            }
            if offload::from_guest(packet, frame).is_err() {
                bad = true;
                frame.clear();
                self.stats.port.lost(DropReason::Malformed, 1);
            }
            // A mapped packet is answered when it is reaped.
            if packet.size() <= HEAD || matches!(self.payload, Payload::Copied(_)) {
                self.tx.respond(index, Status::OKAY);
                self.dirty = true;
            }
        }
        bad
    }

    /// Publishes responses; `None` if there are none.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<Notify> {
        std::mem::take(&mut self.dirty).then(|| self.tx.commit())
    }

    /// Requests events for new requests and for released payloads; `true` if there are some already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        let released = match &mut self.payload {
            Payload::Mapped(mapped) => mapped.arm(),
            Payload::Copied(_) => false,
        };
        Ok(self.tx.arm()? | released)
    }

    /// Whether there are requests, or released payloads.
    pub(super) fn has_input(&mut self) -> Result<bool, Fault> {
        let released = match &self.payload {
            Payload::Mapped(mapped) => mapped.has_released(),
            Payload::Copied(_) => false,
        };
        Ok(self.tx.has_requests()? | released)
    }

    /// Takes the event of a released payload.
    pub(super) fn take_event(&self) {
        match &self.payload {
            Payload::Mapped(mapped) => mapped.take_event(),
            Payload::Copied(_) => {}
        }
    }

    /// Becomes readable when a mapped payload is released after [`Ingress::arm`], until that event is taken.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.payload {
            Payload::Mapped(mapped) => Some(mapped.fd()),
            Payload::Copied(_) => None,
        }
    }
}

impl Payload {
    /// Attaches the bytes beyond the head to the frame, if there are any; `copied` is whether all copies succeeded.
    #[inline]
    fn attach(&mut self, packet: &Packet, copied: bool, frame: &mut Frame) -> Result<(), DropReason> {
        let attached = match self {
            Payload::Copied(payload) => payload.attach(packet, frame),
            Payload::Mapped(payload) if copied && packet.size() > HEAD => payload.attach(packet, frame),
            Payload::Mapped(_) => Ok(()),
        };
        if copied { attached } else { Err(DropReason::Malformed) }
    }
}

/// Adds the copies that fill `head` with the packet's first bytes.
#[inline]
fn add_head_copies<'a>(
    guest: DomId,
    fragments: &[Fragment],
    mut head: &'a mut [u8],
    list: &mut Vec<CopyOp<'a>>,
) {
    for fragment in fragments {
        if head.is_empty() {
            return;
        }
        let len = usize::from(fragment.size).min(head.len());
        let (filled, rest) = std::mem::take(&mut head).split_at_mut(len);
        head = rest;
        if len > 0 {
            let source = CopyPtr::Grant { domid: guest, gref: fragment.gref, offset: fragment.offset };
            list.push(CopyOp::new(source, CopyPtr::Memory(filled.into()), len as u16));
        }
    }
}
