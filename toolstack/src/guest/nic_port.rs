//! A netfront interface as a port of a bridge, which bridges it to a tap.
#![allow(unsafe_code)] // pool buffers and frames' pages are raw memory

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bridge::{
    Batch, Buffer, Caps, Csum, Frame, Frames, Gso, GsoKind, HEAD, Offload, Pool, Port, Reason, Stats,
};
use netfront::{Config, Meta, Nic, Sent};

use crate::error::chain;

/// Bytes of the longest frame: a packet of 64 KiB - 1 and its Ethernet header fit.
const BUFFER: usize = 66 << 10;
/// Frames received and not yet sent by another port.
const BUFFERS: u32 = 512;
/// Bounds of the queue of frames for which the ring has no slot.
const MAX_FRAMES: usize = 1024;
const MAX_BYTES: usize = 8 << 20;

/// A bridge port that sends and receives through a netfront interface.
pub struct NicPort {
    nic: Nic,
    config: Config,
    stats: Arc<Stats>,
    pool: Arc<Pool>,
    spare: Option<Buffer>,
    waiting: VecDeque<Frame>,
    bytes: usize,
}

impl NicPort {
    /// Creates a port for `nic`, which was opened with `config`.
    ///
    /// # Errors
    /// The memory for the receive buffers cannot be mapped.
    pub fn new(nic: Nic, config: Config) -> io::Result<NicPort> {
        let pool = Pool::new(BUFFERS, BUFFER)?;
        let (stats, waiting) = (Arc::default(), VecDeque::new());
        Ok(NicPort { nic, config, stats, pool, spare: None, waiting, bytes: 0 })
    }

    /// Receives one frame; `false` when there is none.
    fn receive(&mut self, frame: &mut Frame) -> bool {
        let Some(buffer) = self.spare.take().or_else(|| self.pool.take()) else {
            self.stats.lost(Reason::NoBuffer, 1);
            return false;
        };
        // SAFETY: the buffer is initialised memory of this length, and nothing else uses it until it is given to a frame.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), buffer.size()) };
        let Some((len, meta)) = self.nic.recv(bytes) else {
            self.spare = Some(buffer);
            return false;
        };
        let head = len.min(HEAD);
        frame.fill_head(head).copy_from_slice(&bytes[..head]);
        frame.set_offload(offload(&meta));
        match len - head {
            0 => self.spare = Some(buffer),
            rest => buffer.give_part_to(frame, head, rest),
        }
        true
    }

    /// Sends one frame; `false` when the ring is full.
    fn transmit(&mut self, frame: &Frame) -> bool {
        let sent = self.nic.send_in_place(frame.len(), &meta(frame.offload()), |at, to| {
            let mut to = to;
            for piece in frame.range(at, to.len()) {
                // SAFETY: `to` is at least as long as the rest of the range, and does not overlap the frame's memory.
                unsafe { piece.copy_to_raw(to.ptr_guard_mut().as_ptr()) };
                let Ok(rest) = to.offset(piece.len()) else { break };
                to = rest;
            }
        });
        match sent {
            Sent::Queued => self.stats.tx(1, frame.len() as u64),
            Sent::Dropped => self.stats.lost(Reason::Down, 1),
            Sent::Full => return false,
        }
        true
    }

    /// Sends queued frames while the ring has slots.
    fn drain(&mut self) {
        while let Some(frame) = self.waiting.pop_front() {
            if !self.transmit(&frame) {
                self.waiting.push_front(frame);
                return;
            }
            self.bytes -= frame.len();
        }
    }
}

impl Port for NicPort {
    fn caps(&self) -> Caps {
        let mtu = self.nic.mtu();
        self.nic.offer().map_or(Caps::plain(mtu), |offer| Caps {
            mtu,
            csum_v4: self.config.csum,
            csum_v6: self.config.csum && offer.csum_v6,
            sg: offer.sg,
            gso_v4: self.config.gso && offer.gso_v4,
            gso_v6: self.config.gso && offer.gso_v6,
        })
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        self.nic.turn().map_err(io::Error::other)?;
        self.drain();
        let (frames, bytes) = (into.len(), into.bytes());
        while let Some(frame) = into.slot() {
            if !self.receive(frame) {
                into.undo();
                break;
            }
        }
        let received = into.len() - frames;
        if received > 0 {
            self.stats.rx(received as u64, into.bytes() - bytes);
        }
        Ok(())
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        self.drain();
        for frame in frames.iter() {
            if self.waiting.is_empty() && self.transmit(frame) {
                continue;
            }
            if self.waiting.len() >= MAX_FRAMES || self.bytes + frame.len() > MAX_BYTES {
                self.stats.lost(Reason::NoRoom, 1);
                continue;
            }
            self.bytes += frame.len();
            self.waiting.push_back(frame.clone());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.nic.flush();
        Ok(())
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(self.nic.arm(!self.waiting.is_empty()))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.nic.fd()
    }
}

impl Drop for NicPort {
    /// Closes the interface; an error has no effect any more.
    fn drop(&mut self) {
        if let Err(error) = self.nic.shut() {
            tracing::debug!(error = %chain(&error), "failed to close the interface");
        }
    }
}

fn offload(meta: &Meta) -> Offload {
    Offload {
        csum: meta.csum.map(|c| Csum { start: c.start, offset: c.offset }),
        verified: meta.verified,
        gso: meta.gso.map(|g| Gso { kind: if g.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 }, size: g.size }),
    }
}

fn meta(offload: &Offload) -> Meta {
    Meta {
        csum: offload.csum.map(|c| netfront::csum::Csum { start: c.start, offset: c.offset }),
        verified: offload.verified,
        gso: offload.gso.map(|g| netfront::Gso { v6: g.kind == GsoKind::TcpV6, size: g.size }),
    }
}
