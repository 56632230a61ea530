//! A port that reads its frames into memory that the other end of its wire lends, as a tap does.
#![allow(unsafe_code)] // Writes lent memory.

use arrayvec::ArrayVec;
use bridge::port::pair::Pair;
use bridge::{Batch, Caps, Fragment, Frame, Frames, HEAD, Interest, Iovecs, MAX_FRAGMENTS, Port, Stats};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes that are read into a frame's head, as by a tap.
const HEAD_LEN: usize = HEAD;

/// A port whose frames are those that the other end of a pair is given.
pub struct Reader {
    inner: Pair,
    batch: Batch,
}

impl Reader {
    /// A port, and the end of a pair from which its frames come and where those that it is sent go.
    pub fn new(caps: Caps) -> (Reader, Pair) {
        let (inner, outer) = Pair::new(caps, 64).unwrap();
        (Reader { inner, batch: Batch::new(64) }, outer)
    }
}

/// Reads a frame into lent memory; `false` if there is none, where a tap would leave further frames in the kernel.
fn read(from: &Frame, to: &mut dyn Port, into: &mut Frame) -> bool {
    let mut lent = Iovecs::new();
    to.lend(HEAD_LEN, &mut lent);
    if lent.is_empty() || from.len() <= HEAD_LEN {
        return false;
    }
    let bytes = from.to_vec();
    let (head, mut payload) = bytes.split_at(HEAD_LEN);
    into.fill_head(HEAD_LEN).copy_from_slice(head);
    let mut fragments: ArrayVec<Fragment, MAX_FRAGMENTS> = ArrayVec::new();
    for piece in &lent {
        let (part, rest) = payload.split_at(piece.iov_len.min(payload.len()));
        if part.is_empty() {
            break;
        }
        let start: *mut u8 = piece.iov_base.cast();
        // SAFETY: the piece is lent, so that it may be written until the next call; the frame's pin keeps it then.
        unsafe {
            shared_copy::copy(part.as_ptr(), start, part.len());
            fragments.push(Fragment::new(start, part.len() as u32));
        }
        payload = rest;
    }
    assert!(payload.is_empty(), "less was lent than the longest frame needs");
    let Some(pin) = to.keep_lent(fragments.len()) else { return false };
    into.pin(pin);
    fragments.into_iter().for_each(|fragment| into.push(fragment).unwrap());
    into.set_offload(*from.offload());
    true
}

impl Port for Reader {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn stats(&self) -> &Arc<Stats> {
        self.inner.stats()
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        self.inner.recv(into)
    }

    fn recv_for(&mut self, to: &mut dyn Port, into: &mut Batch) -> io::Result<()> {
        self.batch.limit(into.room());
        self.inner.recv(&mut self.batch)?;
        for frame in self.batch.frames() {
            let slot = into.slot().expect("as many as there is room for");
            if !read(frame, to, slot) {
                slot.copy_from(frame);
            }
        }
        self.batch.clear();
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        self.inner.send(frames)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn arm(&mut self, needs: Interest) -> io::Result<bool> {
        self.inner.arm(needs)
    }

    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        self.inner.is_ready(needs)
    }

    fn take_events(&mut self) -> io::Result<()> {
        self.inner.take_events()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }
}
