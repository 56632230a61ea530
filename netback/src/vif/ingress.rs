//! Guest to bridge: packets of the transmit ring become frames.
//!
//! The head (128 bytes) of every packet of a round is copied by one batch of grant copies into the frames' private
//! memory and checked there. A payload beyond it is [`mapped`](super::mapped) or [`copied`](super::copied).

use crate::assemble::{Fault, Packet, Part};
use crate::offload;
use crate::ops::{self, Ops};
use crate::tx::Tx;
use bridge::{Batch, Frame, HEAD, Reason, Stats};
use hypervisor::{Contiguous, CopyOp, CopyPtr, Hypervisor, InflightRegion};
use ring_abi::DomId;
use ring_abi::netif::Status;
use ring_abi::ring::Notify;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Failed;
use super::copied::Copied;
use super::mapped::{Answer, Mapped};

/// What becomes of payloads.
enum Payload {
    /// They stay where they are while frames point there, and the guest is answered afterwards.
    Mapped(Mapped),
    /// They are copied with the heads, and the guest is answered at once, in order.
    Copied(Copied),
}

/// A packet on its way through a round.
#[derive(Clone, Copy)]
struct Job {
    /// Its place in the round.
    packet: u16,
    /// Copies that fill its head.
    copies: u16,
}

/// The transmit side of a vif.
pub(super) struct Ingress {
    hv: Arc<dyn Hypervisor>,
    guest: DomId,
    tx: Tx<Contiguous, InflightRegion>,
    payload: Payload,
    stats: Arc<Stats>,
    jobs: Vec<Job>,
    ops: Ops,
    dirty: bool,
}

impl Ingress {
    /// `copied`: payloads are copied rather than mapped, and packets answered in order.
    pub(super) fn new(
        hv: Arc<dyn Hypervisor>,
        guest: DomId,
        tx: Tx<Contiguous, InflightRegion>,
        burst: usize,
        copied: bool,
        stats: Arc<Stats>,
    ) -> Result<Self, Failed> {
        let payload = match copied {
            true => Payload::Copied(Copied::new()?),
            false => Payload::Mapped(Mapped::new(hv.clone(), guest, tx.slots() as u16)?),
        };
        let (jobs, ops) = (Vec::with_capacity(burst), Ops::with_capacity(burst * 2));
        Ok(Self { hv, guest, tx, payload, stats, jobs, ops, dirty: false })
    }

    /// Answers packets whose payload nobody uses any more.
    #[inline]
    pub(super) fn reap(&mut self) {
        let Payload::Mapped(mapped) = &mut self.payload else { return };
        while let Some(Answer { ids, extras }) = mapped.reap() {
            self.tx.answer_kept(&ids, extras, Status::OKAY);
            self.dirty = true;
        }
    }

    /// Puts the next packets into `into`, as many as it has room for.
    pub(super) fn recv(&mut self, into: &mut Batch) -> Result<(), Failed> {
        let start = into.len();
        let count = self.tx.poll(into.room())?.len();
        if count == 0 {
            return Ok(());
        }
        self.dirty = true;
        self.admit(count, into);
        let copied = self.copy(&mut into.frames_mut()[start..]);
        let bad = self.finish(count, &mut into.frames_mut()[start..]);
        if bad {
            into.retain(|frame| !frame.is_empty());
        }
        let bytes = into.frames()[start..].iter().map(|frame| frame.len() as u64).sum();
        self.stats.rx((into.len() - start) as u64, bytes);
        copied
    }

    /// Gives every packet that is not refused a frame with an empty head of the right length.
    fn admit(&mut self, count: usize, into: &mut Batch) {
        self.jobs.clear();
        for place in 0..count {
            let packet = self.tx.packet(place);
            if packet.refusal().is_some() {
                continue;
            }
            // There is room for as many as were polled.
            if let Some(frame) = into.slot() {
                frame.fill_head(packet.size().min(HEAD));
                self.jobs.push(Job { packet: place as u16, copies: 0 });
            }
        }
    }

    /// Copies all heads at once, and payloads that are copied. How many of its copies failed is in each job.
    fn copy(&mut self, frames: &mut [Frame]) -> Result<(), Failed> {
        let mut list = self.ops.lend();
        for (job, frame) in self.jobs.iter_mut().zip(&mut *frames) {
            let before = list.len();
            let packet = self.tx.packet(job.packet.into());
            pull(self.guest, packet.parts(), frame.head_mut(), &mut list);
            if let Payload::Copied(copied) = &mut self.payload {
                copied.pull(self.guest, packet, &mut list);
            }
            job.copies = (list.len() - before) as u16;
        }
        let made = ops::run(&*self.hv, &mut list);
        let mut at = 0;
        for job in &mut self.jobs {
            let mine = &list[at..at + usize::from(job.copies)];
            at += mine.len();
            // From here on it says how many failed.
            job.copies = mine.iter().filter(|copy| made.is_err() || !copy.status.is_okay()).count() as u16;
        }
        self.ops.keep(list);
        Ok(made?)
    }

    /// Attaches payloads, reads headers and answers what is complete, in order; `true` if any frame was emptied.
    fn finish(&mut self, count: usize, frames: &mut [Frame]) -> bool {
        let mut bad = false;
        let mut jobs = self.jobs.iter().zip(frames).peekable();
        for place in 0..count {
            let Some((job, frame)) = jobs.next_if(|(job, _)| usize::from(job.packet) == place) else {
                // It was refused.
                self.stats.lost(Reason::Malformed, 1);
                self.tx.answer(place, Status::ERROR);
                continue;
            };
            let packet = self.tx.packet(place);
            if let Err(reason) = self.payload.attach(packet, job.copies == 0, frame) {
                bad = true;
                frame.clear();
                self.stats.lost(reason, 1);
                self.tx.answer(place, Status::ERROR);
                continue;
            }
            if offload::from_guest(packet, frame).is_err() {
                bad = true;
                frame.clear();
                self.stats.lost(Reason::Malformed, 1);
            }
            // What is mapped is answered when it is reaped.
            if packet.size() <= HEAD || matches!(self.payload, Payload::Copied(_)) {
                self.tx.answer(place, Status::OKAY);
            }
        }
        bad
    }

    /// Publishes answers.
    #[inline]
    pub(super) fn commit(&mut self) -> Notify {
        if std::mem::take(&mut self.dirty) { self.tx.commit() } else { Notify::No }
    }

    /// Asks to be woken by requests, and by pages let go of; `true` if there are some already.
    pub(super) fn arm(&mut self) -> Result<bool, Fault> {
        let freed = match &mut self.payload {
            Payload::Mapped(mapped) => mapped.arm(),
            Payload::Copied(_) => false,
        };
        Ok(self.tx.arm()? | freed)
    }

    /// Readable once pages were let go of, if any are kept.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.payload {
            Payload::Mapped(mapped) => Some(mapped.fd()),
            Payload::Copied(_) => None,
        }
    }
}

impl Payload {
    /// Gives the frame what follows its head, if anything does; `copied` says whether all copies were made.
    #[inline]
    fn attach(&mut self, packet: &Packet, copied: bool, frame: &mut Frame) -> Result<(), Reason> {
        let attached = match self {
            Payload::Copied(payload) => payload.attach(packet, frame),
            Payload::Mapped(payload) if copied && packet.size() > HEAD => payload.attach(packet, frame),
            Payload::Mapped(_) => Ok(()),
        };
        if copied { attached } else { Err(Reason::Malformed) }
    }
}

/// Adds the copies that fill `head` from the packet's first bytes; the bytes of one part never cross a page.
#[inline]
fn pull<'a>(guest: DomId, parts: &[Part], mut head: &'a mut [u8], list: &mut Vec<CopyOp<'a>>) {
    for part in parts {
        if head.is_empty() {
            return;
        }
        let len = usize::from(part.size).min(head.len());
        let (now, rest) = std::mem::take(&mut head).split_at_mut(len);
        head = rest;
        if len > 0 {
            let source = CopyPtr::Grant { domid: guest, gref: part.gref, offset: part.offset };
            list.push(CopyOp::new(source, CopyPtr::Memory(now.into()), len as u16));
        }
    }
}

/// The parts beyond the head, the first one shortened by what the head has of it.
pub(super) fn body(packet: &Packet) -> impl Iterator<Item = Part> {
    let mut skip = HEAD as u16;
    packet.parts().iter().filter_map(move |part| {
        let skipped = skip.min(part.size);
        skip -= skipped;
        let rest = Part { offset: part.offset + skipped, size: part.size - skipped, ..*part };
        (rest.size > 0).then_some(rest)
    })
}
