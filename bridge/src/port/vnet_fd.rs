// Not a core: does I/O or calls a hypervisor.

//! Receives and sends frames by a descriptor that uses `virtio_net_hdr`: a tap's or a packet socket's.
//!
//! One call reads a frame's head into the frame and the rest into a pool buffer, or into memory that the port it goes to lends;
//! one call writes a frame from the pages
//! that it is in. Other processes may be writing to those pages meanwhile: the kernel copies the bytes that it finds.
#![allow(unsafe_code)] // system calls on raw iovecs: the memory they name must not be behind references

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use arrayvec::ArrayVec;
use nix::errno::Errno;

use super::{LENT, vnet};
use crate::{
    Batch, Buffer, DropReason, Fragment, Frame, Frames, HEAD, Iovecs, MAX_FRAGMENTS, Pool, Port, Stats, iovec,
};

/// The head keeps four bytes free for a tag to be inserted.
const HEAD_READ: usize = HEAD;
const BUFFERS: u32 = 256;
const VLAN_TAG: usize = 4;

/// The result of one read: the number of bytes, and the VLAN tag that the kernel has removed from the frame.
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) tag: Option<[u8; VLAN_TAG]>,
}

/// A descriptor with receive buffers and counters.
pub(super) struct VnetFd {
    pub(super) fd: OwnedFd,
    pub(super) stats: Arc<Stats>,
    pool: Arc<Pool>,
    spare: Option<Buffer>,
}

impl VnetFd {
    /// Makes a port's I/O of a non-blocking descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<VnetFd> {
        Ok(VnetFd { fd, stats: Arc::default(), pool: Pool::new(BUFFERS, LENT)?, spare: None })
    }

    /// Reads frames with `read` (`readv` or the like) until there are none or `into` is full. All go to the port `to`, if that is
    /// known.
    pub(super) fn recv(
        &mut self,
        into: &mut Batch,
        mut to: Option<&mut dyn Port>,
        read: impl Fn(&OwnedFd, &mut [libc::iovec]) -> io::Result<Received>,
    ) -> io::Result<()> {
        let mut frames = 0;
        let mut bytes = 0;
        let mut result = Ok(());
        // The number of reads is bounded too: endless frames that are dropped must not block the other ports.
        for _ in 0..into.room() {
            let Some(frame) = into.slot() else { break };
            // Not by `as_deref_mut`, whose trait object has the outer lifetime.
            let lender = to.as_mut().map(|to| &mut **to as &mut dyn Port);
            match self.recv_one(frame, lender, frames == 0, &read) {
                Ok(None) => {
                    frames += 1;
                    bytes += frame.len() as u64;
                    continue;
                }
                Ok(Some(reason)) => self.stats.lost(reason, 1),
                Err(error) => result = Err(error),
            }
            into.undo();
            if result.is_err() {
                break;
            }
        }
        if frames > 0 {
            self.stats.rx(frames, bytes);
        }
        result.or_else(|error| match error.raw_os_error().map(Errno::from_raw) {
            // A packet socket reports once that its interface went down; it works again once the interface is up.
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(()),
            _ => Err(error),
        })
    }

    fn recv_one(
        &mut self,
        frame: &mut Frame,
        mut to: Option<&mut dyn Port>,
        is_first: bool,
        read: impl Fn(&OwnedFd, &mut [libc::iovec]) -> io::Result<Received>,
    ) -> io::Result<Option<DropReason>> {
        let mut header = [0; vnet::LEN];
        let mut surplus = [0u8];
        let mut iovecs = Iovecs::new();
        iovecs.push(iovec(header.as_mut_ptr(), vnet::LEN));
        iovecs.push(iovec(frame.fill_head(HEAD_READ).as_mut_ptr(), HEAD_READ));
        let lends = to.as_mut().is_some_and(|to| to.lend(HEAD_READ, &mut iovecs));
        let is_lent = iovecs.len() > 2;
        // One is read all the same, and waits in a buffer: this port is held then until the other is told of room.
        if lends && !is_lent && !is_first {
            return Err(Errno::EAGAIN.into());
        }
        if !is_lent {
            self.spare = self.spare.take().or_else(|| self.pool.take());
            iovecs.push(match &self.spare {
                Some(buffer) => iovec(buffer.as_mut_ptr(), buffer.size()),
                // Without a buffer, one byte shows whether the frame is longer than the head.
                None => iovec(surplus.as_mut_ptr(), 1),
            });
        }
        let Received { bytes, tag } = read(&self.fd, &mut iovecs)?;
        let Some(len) = bytes.checked_sub(vnet::LEN) else {
            return Ok(Some(DropReason::Runt));
        };
        frame.shorten_head(len);
        if let Some(payload) = len.checked_sub(HEAD_READ).filter(|payload| *payload > 0) {
            let has_payload = match (to, self.spare.take()) {
                (Some(to), _) if is_lent => keep_lent(frame, to, &iovecs[2..], payload),
                (_, Some(buffer)) => {
                    buffer.give_to(frame, payload);
                    true
                }
                (_, None) => false,
            };
            if !has_payload {
                return Ok(Some(DropReason::NoBuffer));
            }
        }
        let Some(offload) = vnet::parse(&header) else {
            return Ok(Some(DropReason::Malformed));
        };
        frame.set_offload(offload);
        if let Some(tag) = tag {
            frame.insert_tag(tag);
        }
        Ok(None)
    }

    /// Writes each frame with its header; frames that the kernel refuses are counted as dropped.
    pub(super) fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        let mut sent = 0;
        let mut bytes = 0;
        for frame in frames.iter() {
            match self.send_one(frame) {
                Ok(()) => {
                    sent += 1;
                    bytes += frame.len() as u64;
                }
                Err(errno) => self.stats.lost(reason(errno).ok_or(errno)?, 1),
            }
        }
        self.stats.tx(sent, bytes);
        Ok(frames.len())
    }

    fn send_one(&self, frame: &Frame) -> nix::Result<()> {
        let mut header = vnet::make(frame);
        let mut iovecs = Iovecs::new();
        iovecs.push(iovec(header.as_mut_ptr(), vnet::LEN));
        frame.iovecs(&mut iovecs);
        loop {
            // SAFETY: the entries refer to the header and the frame's bytes, which are borrowed and readable.
            let written = unsafe { libc::writev(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
            match Errno::result(written) {
                Err(Errno::EINTR) => {}
                other => return other.map(|_| ()),
            }
        }
    }
}

/// Makes the first `len` bytes of memory that `to` has lent the frame's payload; `false` if it keeps none for the frame.
fn keep_lent(frame: &mut Frame, to: &mut dyn Port, lent: &[libc::iovec], len: usize) -> bool {
    let mut fragments: ArrayVec<Fragment, MAX_FRAGMENTS> = ArrayVec::new();
    let mut left = len;
    for piece in lent {
        if left == 0 || fragments.is_full() {
            break;
        }
        let part = left.min(piece.iov_len);
        // SAFETY: the lender keeps the memory while the frame has the pin.
        fragments.push(unsafe { Fragment::new(piece.iov_base.cast(), part as u32) });
        left -= part;
    }
    let Some(pin) = to.keep_lent(fragments.len()).filter(|_| left == 0) else { return false };
    frame.pin(pin);
    fragments.into_iter().all(|fragment| frame.push(fragment).is_ok())
}

/// `readv`, for [`VnetFd::recv`].
pub(super) fn readv(fd: &OwnedFd, iovecs: &mut [libc::iovec]) -> io::Result<Received> {
    // SAFETY: the caller's entries refer to memory that it may write.
    let read = unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
    Ok(Received { bytes: Errno::result(read)? as usize, tag: None })
}

/// Why a frame was refused, if the descriptor is still usable.
fn reason(errno: Errno) -> Option<DropReason> {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Some(DropReason::NoRoom),
        // A tap fails with EIO when its interface is down, a packet socket with ENETDOWN.
        Errno::EIO | Errno::ENETDOWN => Some(DropReason::Down),
        Errno::EINVAL => Some(DropReason::Malformed),
        Errno::EMSGSIZE => Some(DropReason::TooLong),
        _ => None,
    }
}
