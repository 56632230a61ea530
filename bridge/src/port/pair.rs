// Not a core: does I/O or calls a hypervisor.

//! A pair of connected ports in this process: one receives what the other sends.
//!
//! One end is attached to a bridge, and a program, a test or another bridge uses the other.

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

use crate::{Batch, Caps, Frame, Frames, Interest, Port, Stats};

/// The bounded queue of frames of one direction.
#[derive(Debug)]
struct FrameQueue {
    queue: ArrayQueue<Frame>,
    /// The receiver sleeps, or is about to, and waits for `notifier`.
    armed: AtomicBool,
    notifier: EventFd,
    /// The sender waits for room, and for the notifier of the queue that it receives from.
    room_wanted: AtomicBool,
    /// One of the ends is dropped.
    closed: AtomicBool,
}

impl FrameQueue {
    fn new(limit: usize) -> io::Result<Arc<FrameQueue>> {
        let notifier = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let queue = ArrayQueue::new(limit.max(1));
        Ok(Arc::new(FrameQueue {
            queue,
            armed: AtomicBool::new(true),
            notifier,
            room_wanted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }))
    }

    fn notify(&self) {
        // Pairs with the fence in `arm`: either this thread reads `armed` as true, or the receiver sees the frames
        // pushed.
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

/// One of two ends. Frames are queued without a copy: a frame's pages are released when the other end's user drops the
/// frame. When one end is dropped the other fails with `BrokenPipe`.
#[derive(Debug)]
pub struct Pair {
    caps: Caps,
    stats: Arc<Stats>,
    rx: Arc<FrameQueue>,
    tx: Arc<FrameQueue>,
    sent: bool,
}

impl Pair {
    /// Makes two ends with these capabilities, each of which queues up to `limit` frames for the other.
    pub fn new(caps: Caps, limit: usize) -> io::Result<(Pair, Pair)> {
        let one = FrameQueue::new(limit)?;
        let other = FrameQueue::new(limit)?;
        let end = |rx: &Arc<FrameQueue>, tx: &Arc<FrameQueue>| Pair {
            caps,
            stats: Arc::default(),
            rx: rx.clone(),
            tx: tx.clone(),
            sent: false,
        };
        Ok((end(&one, &other), end(&other, &one)))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tx.close();
        self.rx.close();
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
        let closed = self.rx.closed.load(SeqCst);
        let frames = into.len();
        let bytes = into.bytes();
        while into.room() > 0 {
            let Some(frame) = self.rx.queue.pop() else { break };
            if let Some(slot) = into.slot() {
                *slot = frame;
            }
        }
        let frames = into.len() - frames;
        if frames > 0 {
            self.stats.rx(frames as u64, into.bytes() - bytes);
            // Pairs with the fence in `arm`, as in `notify`.
            fence(SeqCst);
            if self.rx.room_wanted.load(SeqCst) && self.rx.room_wanted.swap(false, SeqCst) {
                let _ = self.tx.notifier.write(1);
            }
        } else if closed {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the other end of the pair is dropped"));
        }
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        let mut sent = 0;
        let mut bytes = 0;
        for frame in frames.iter() {
            if self.tx.queue.is_full() || self.tx.queue.push(frame.clone()).is_err() {
                break;
            }
            sent += 1;
            bytes += frame.len() as u64;
        }
        self.sent |= sent > 0;
        self.stats.tx(sent, bytes);
        Ok(sent as usize)
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.sent) {
            self.tx.notify();
        }
        Ok(())
    }

    fn arm(&mut self, needs: Interest) -> io::Result<bool> {
        if needs.input {
            self.rx.armed.store(true, SeqCst);
        }
        if needs.room {
            self.tx.room_wanted.store(true, SeqCst);
        }
        fence(SeqCst);
        self.is_ready(needs)
    }

    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        let has_input = !self.rx.queue.is_empty() || self.rx.closed.load(SeqCst);
        Ok((needs.input && has_input) || (needs.room && !self.tx.queue.is_full()))
    }

    fn take_events(&mut self) -> io::Result<()> {
        // EAGAIN is no error: there was none.
        let _ = self.rx.notifier.read();
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.rx.notifier.as_fd()
    }
}
