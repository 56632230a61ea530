//! Two ports joined back to back within this process: what one sends, the other receives.
//!
//! Attach one end to a bridge and keep the other in a program or a test, or join two bridges.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst, fence},
    },
};

use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Batch, Caps, Frame, Frames, Port, Reason, Stats};

/// One direction.
#[derive(Debug)]
struct Lane {
    queue: ArrayQueue<Frame>,
    /// The receiver sleeps, or is about to, and wants `notifier` rung.
    armed: AtomicBool,
    notifier: EventFd,
    /// One of the ends is gone.
    closed: AtomicBool,
}

impl Lane {
    fn new(limit: usize) -> io::Result<Arc<Lane>> {
        let notifier = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let queue = ArrayQueue::new(limit.max(1));
        Ok(Arc::new(Lane { queue, armed: AtomicBool::new(true), notifier, closed: AtomicBool::new(false) }))
    }

    fn ring(&self) {
        // Pairs with the fence in `arm`: either we see that it is armed, or it sees what we pushed.
        fence(SeqCst);
        if self.armed.swap(false, SeqCst) {
            let _ = self.notifier.write(1);
        }
    }

    fn close(&self) {
        self.closed.store(true, SeqCst);
        let _ = self.notifier.write(1);
    }
}

/// One of two ends. It takes frames as they are, pages and all: a frame's sender gets its pages back when
/// the program at the other end drops the frame. When one end is dropped the other fails with `BrokenPipe`.
#[derive(Debug)]
pub struct Pair {
    caps: Caps,
    stats: Arc<Stats>,
    inward: Arc<Lane>,
    outward: Arc<Lane>,
    sent: bool,
}

impl Pair {
    /// Two ends, each of which takes what `caps` says and holds up to `limit` frames for the other.
    pub fn new(caps: Caps, limit: usize) -> io::Result<(Pair, Pair)> {
        let (one, other) = (Lane::new(limit)?, Lane::new(limit)?);
        let end = |inward: &Arc<Lane>, outward: &Arc<Lane>| Pair {
            caps,
            stats: Arc::default(),
            inward: inward.clone(),
            outward: outward.clone(),
            sent: false,
        };
        Ok((end(&one, &other), end(&other, &one)))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.outward.close();
        self.inward.close();
    }
}

impl Port for Pair {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        let closed = self.inward.closed.load(SeqCst);
        let (frames, bytes) = (into.len(), into.bytes());
        while into.room() > 0 {
            let Some(frame) = self.inward.queue.pop() else { break };
            if let Some(slot) = into.slot() {
                *slot = frame;
            }
        }
        let frames = into.len() - frames;
        if frames > 0 {
            self.stats.rx(frames as u64, into.bytes() - bytes);
        } else if closed {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the other end of the pair is gone"));
        }
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        let (mut sent, mut bytes, mut dropped) = (0, 0, 0);
        for frame in frames.iter() {
            if self.outward.queue.is_full() {
                dropped += 1;
            } else if self.outward.queue.push(frame.clone()).is_ok() {
                sent += 1;
                bytes += frame.len() as u64;
            }
        }
        self.sent |= sent > 0;
        self.stats.tx(sent, bytes);
        self.stats.lost(Reason::NoRoom, dropped);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.sent) {
            self.outward.ring();
        }
        Ok(())
    }

    fn arm(&mut self) -> io::Result<bool> {
        // Read before arming: a ring that comes after must not be lost.
        let _ = self.inward.notifier.read();
        self.inward.armed.store(true, SeqCst);
        fence(SeqCst);
        Ok(!self.inward.queue.is_empty() || self.inward.closed.load(SeqCst))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.inward.notifier.as_fd()
    }
}
