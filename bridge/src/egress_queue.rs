//! The frames that wait for one port: bounded in frames and bytes, and served flow by flow.
//!
//! A frame whose sender is held waits in the sender's pages, which costs the host no memory: its request stays unanswered, so
//! that the sender stops by itself. Of every other sender a copy waits, so that its other frames do not wait for the pages,
//! and a port that takes nothing keeps nobody's pages (XSA-392). Copies are bounded; beyond the bounds the flow that costs most
//! loses its oldest frame, as in RFC 8290. A frame costs its bytes and what any costs its receiver.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{Frame, fdb::PortId, headers::Headers};

/// Flows by which frames are sorted; several may share one.
const FLOWS: usize = 64;
/// What a flow may send in its turn, in bytes and [`FRAME_COST`]s.
const QUANTUM: usize = 16 << 10;
/// What a frame of any length costs its receiver, in bytes that could be copied meanwhile: a system call or an interrupt's share,
/// and the way through its network stack, are a microsecond or two.
const FRAME_COST: usize = 8 << 10;
/// Frames offered to the port at once.
const STAGED: usize = 16;

/// The bounds of the frames that wait for a port.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Most frames of senders that are not held.
    pub frames: usize,
    /// Most bytes of these.
    pub bytes: usize,
    /// How long a sender is held at a time, and no longer than since the port last took a frame.
    pub hold: Duration,
    /// How long a port may take no frame before the frames that wait for it are dropped: Linux's `rx_stall_timeout`.
    pub stall: Duration,
}

impl Default for QueueLimits {
    fn default() -> QueueLimits {
        QueueLimits {
            frames: 2048,
            bytes: 2 << 20,
            hold: Duration::from_millis(5),
            stall: Duration::from_secs(10),
        }
    }
}

/// A frame that waits.
#[derive(Debug)]
struct Waiting {
    frame: Frame,
    from: PortId,
    /// The sender is held.
    is_held: bool,
}

#[derive(Debug, Default)]
struct Flow {
    queue: VecDeque<Waiting>,
    /// What the copies in `queue` cost.
    cost: usize,
    credit: usize,
}

/// The frames that wait for one port.
#[derive(Debug)]
pub(crate) struct EgressQueue {
    limits: QueueLimits,
    seed: u64,
    /// Allocated with the first frame.
    flows: Vec<Flow>,
    /// The flows with frames, in the order of their turns.
    turns: VecDeque<usize>,
    /// The next frames, to be offered to the port, and whose they are.
    staged: Vec<Frame>,
    staged_from: Vec<(PortId, bool)>,
    len: usize,
    copies: usize,
    copied_bytes: usize,
    /// For each port, its frames that wait while it is held.
    held: Vec<u32>,
    /// When the port last took a frame, or else when the first frame came. `None` while none waits.
    waiting_since: Option<Instant>,
    /// The port has taken no frame since its frames were dropped: none waits until it does.
    is_stalled: bool,
}

impl EgressQueue {
    /// An empty queue. `seed` must not be guessable by the senders.
    pub(crate) fn new(limits: QueueLimits, seed: u64) -> EgressQueue {
        EgressQueue {
            limits,
            seed,
            flows: Vec::new(),
            turns: VecDeque::new(),
            staged: Vec::new(),
            staged_from: Vec::new(),
            len: 0,
            copies: 0,
            copied_bytes: 0,
            held: Vec::new(),
            waiting_since: None,
            is_stalled: false,
        }
    }

    /// Sets other bounds; returns how many frames were dropped, as they do not fit.
    pub(crate) fn set_limits(&mut self, limits: QueueLimits) -> u64 {
        self.limits = limits;
        let mut dropped = 0;
        while (self.copies > self.limits.frames || self.copied_bytes > self.limits.bytes)
            && self.drop_of_longest(None)
        {
            dropped += 1;
        }
        self.waiting_since = self.waiting_since.filter(|_| self.len > 0);
        dropped
    }

    /// The port could have taken no frame before now.
    pub(crate) fn waits_from(&mut self, now: Instant) {
        self.waiting_since = self.waiting_since.map(|_| now);
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the port has taken no frame for so long that nobody is held for it.
    pub(crate) fn is_stuck(&self, now: Instant) -> bool {
        let since = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.is_stalled || since.is_some_and(|since| since >= self.limits.hold)
    }

    /// Frames of a port that wait while it is held.
    pub(crate) fn held(&self, from: PortId) -> u32 {
        self.held.get(usize::from(from.0)).copied().unwrap_or(0)
    }

    /// Adds a frame; `is_held`: its sender is held until it is taken. Returns the number of frames dropped for it, itself
    /// included.
    pub(crate) fn push(&mut self, frame: &Frame, from: PortId, is_held: bool, now: Instant) -> u64 {
        let index = self.flow_of(frame, from);
        let mut dropped = 0;
        if is_held {
            self.count_held(from, 1);
        } else {
            if self.is_stalled || frame.len() > self.limits.bytes {
                return 1;
            }
            while !self.has_space(frame.len()) {
                dropped += 1;
                if !self.drop_of_longest(Some(index)) {
                    return dropped;
                }
            }
        }
        self.flows.resize_with(FLOWS, Flow::default);
        let flow = &mut self.flows[index];
        let frame = if is_held {
            frame.clone()
        } else {
            flow.cost += cost_of(frame);
            self.copies += 1;
            self.copied_bytes += frame.len();
            copy_of(frame)
        };
        if flow.queue.is_empty() {
            self.turns.push_back(index);
        }
        flow.queue.push_back(Waiting { frame, from, is_held });
        self.len += 1;
        self.waiting_since.get_or_insert(now);
        dropped
    }

    /// The next frames for the port: at most so many, or those that were staged before.
    pub(crate) fn stage(&mut self, most: usize) -> &[Frame] {
        while self.staged.len() < most.min(STAGED) {
            let Some(&index) = self.turns.front() else { break };
            let flow = &mut self.flows[index];
            let cost = flow.queue.front().map_or(0, |waiting| cost_of(&waiting.frame));
            if flow.credit < cost {
                flow.credit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            if let Some(Waiting { frame, from, is_held }) = flow.queue.pop_front() {
                flow.credit -= cost;
                flow.cost -= if is_held { 0 } else { cost };
                self.staged.push(frame);
                self.staged_from.push((from, is_held));
            }
            if flow.queue.is_empty() {
                flow.credit = 0;
                // The memory of a long queue is given back.
                flow.queue.shrink_to(2 * STAGED);
                self.turns.pop_front();
            }
        }
        &self.staged
    }

    /// Removes the first `count` staged frames, which the port has taken.
    pub(crate) fn taken(&mut self, count: usize, now: Instant) {
        for (frame, (from, is_held)) in self.staged.drain(..count).zip(self.staged_from.drain(..count)) {
            self.len -= 1;
            if is_held {
                self.held[usize::from(from.0)] -= 1;
            } else {
                self.copies -= 1;
                self.copied_bytes -= frame.len();
            }
        }
        self.waiting_since = (self.len > 0).then_some(now);
    }

    /// Records that the port has taken a frame that did not wait.
    #[inline]
    pub(crate) fn end_stall(&mut self) {
        self.is_stalled = false;
    }

    /// Ends the hold of a port: its frames wait as copies from now on. Returns how many were dropped, as they do not fit.
    pub(crate) fn release(&mut self, from: PortId) -> u64 {
        if self.held(from) == 0 {
            return 0;
        }
        self.held[usize::from(from.0)] = 0;
        for index in 0..self.staged.len() {
            if self.staged_from[index] == (from, true) {
                self.staged_from[index].1 = false;
                self.staged[index] = copy_of(&self.staged[index]);
                self.copies += 1;
                self.copied_bytes += self.staged[index].len();
            }
        }
        let mut dropped = 0;
        for index in self.turns.clone() {
            let mut queue = std::mem::take(&mut self.flows[index].queue);
            queue.retain_mut(|waiting| {
                if waiting.from != from || !waiting.is_held {
                    return true;
                }
                let fits = self.has_space(waiting.frame.len());
                if fits {
                    waiting.is_held = false;
                    waiting.frame = copy_of(&waiting.frame);
                    self.copies += 1;
                    self.copied_bytes += waiting.frame.len();
                    self.flows[index].cost += cost_of(&waiting.frame);
                } else {
                    self.len -= 1;
                    dropped += 1;
                }
                fits
            });
            self.flows[index].queue = queue;
        }
        self.turns.retain(|index| !self.flows[*index].queue.is_empty());
        self.waiting_since = self.waiting_since.filter(|_| self.len > 0);
        dropped
    }

    /// Drops all frames if the port has taken none for [`QueueLimits::stall`]; returns how many were dropped.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let since = self.waiting_since.map(|since| now.saturating_duration_since(since));
        if since.is_none_or(|since| since < self.limits.stall) {
            return 0;
        }
        let dropped = self.clear();
        self.is_stalled = true;
        dropped
    }

    /// Drops all frames; returns how many there were.
    pub(crate) fn clear(&mut self) -> u64 {
        let count = self.len as u64;
        *self = EgressQueue::new(self.limits, self.seed);
        count
    }

    fn has_space(&self, len: usize) -> bool {
        self.copies < self.limits.frames && self.copied_bytes + len <= self.limits.bytes
    }

    /// Whether a copy of a frame would wait, rather than being dropped for those of other flows.
    pub(crate) fn has_room(&self, frame: &Frame, from: PortId) -> bool {
        if self.is_empty() && !self.is_stalled {
            return true;
        }
        !self.is_stalled && (self.has_space(frame.len()) || self.longest() != Some(self.flow_of(frame, from)))
    }

    /// The flow whose copies cost most.
    fn longest(&self) -> Option<usize> {
        self.turns.iter().copied().max_by_key(|index| self.flows[*index].cost)
    }

    /// Drops the oldest copy of the flow whose copies cost most; `false` if that is the flow `newest`, whose new
    /// frame is to be dropped instead, or if there is no copy.
    fn drop_of_longest(&mut self, newest: Option<usize>) -> bool {
        let Some(longest) = self.longest().filter(|longest| Some(*longest) != newest) else { return false };
        let flow = &mut self.flows[longest];
        let oldest = flow.queue.iter().position(|waiting| !waiting.is_held);
        let Some(dropped) = oldest.and_then(|oldest| flow.queue.remove(oldest)) else { return false };
        flow.cost -= cost_of(&dropped.frame);
        if flow.queue.is_empty() {
            self.turns.retain(|index| *index != longest);
        }
        self.len -= 1;
        self.copies -= 1;
        self.copied_bytes -= dropped.frame.len();
        true
    }

    fn count_held(&mut self, from: PortId, frames: u32) {
        let index = usize::from(from.0);
        if index >= self.held.len() {
            self.held.resize(index + 1, 0);
        }
        self.held[index] += frames;
    }

    /// The flow of a frame: by its port, addresses and, where it has them all, its connection's. The fragments of a packet
    /// have none, and share a flow with all of their addresses.
    fn flow_of(&self, frame: &Frame, from: PortId) -> usize {
        let head = frame.head();
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        from.0.hash(&mut hasher);
        head.get(..12).hash(&mut hasher);
        if let Some(headers) = Headers::parse(head) {
            headers.protocol.hash(&mut hasher);
            headers.addresses(head).hash(&mut hasher);
            // The ports of TCP, UDP and their like.
            head.get(headers.l4..headers.l4 + 4).hash(&mut hasher);
        }
        hasher.finish() as usize % FLOWS
    }
}

fn cost_of(frame: &Frame) -> usize {
    FRAME_COST + frame.len()
}

/// A copy of a frame with a payload of its own, which pins no pages.
pub(crate) fn copy_of(frame: &Frame) -> Frame {
    let mut copy = match frame.is_head_only() {
        true => frame.clone(),
        false => Frame::from_bytes(Bytes::from(frame.to_vec())),
    };
    copy.set_offload(*frame.offload());
    copy
}

#[cfg(test)]
mod tests;
