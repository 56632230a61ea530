//! Frames to and from a kernel descriptor that speaks `virtio_net_hdr`: what taps and packet sockets share.
//!
//! A frame's head is read into its private place and the rest into a pool buffer, in one call; it is
//! written straight from the pages it lies in, in one call. Other processes may be writing to those pages
//! meanwhile: the kernel copies whatever it finds.
#![allow(unsafe_code)] // system calls on raw iovecs: the memory they name must not be behind references

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use nix::errno::Errno;

use super::vnet;
use crate::{Batch, Buffer, Frame, Frames, HEAD, Iovecs, Pool, Reason, Stats};

/// Longest frame is an IP packet of 65,535 bytes with its Ethernet header; the head takes 128 of that.
const BUFFER: usize = 65_536;
const BUFFERS: u32 = 256;
const VLAN_TAG: usize = 4;

/// One read: how many bytes, and the VLAN tag that the kernel has taken out of the frame.
pub(super) struct Got {
    pub(super) bytes: usize,
    pub(super) tag: Option<[u8; VLAN_TAG]>,
}

/// A descriptor, with what is needed to use it.
pub(super) struct Kernel {
    pub(super) fd: OwnedFd,
    pub(super) stats: Arc<Stats>,
    pool: Arc<Pool>,
    spare: Option<Buffer>,
}

impl Kernel {
    /// Takes over a non-blocking descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Kernel> {
        Ok(Kernel { fd, stats: Arc::default(), pool: Pool::new(BUFFERS, BUFFER)?, spare: None })
    }

    /// Reads frames with `read` (`readv` or the like) while there are any and room for them.
    pub(super) fn recv(
        &mut self,
        into: &mut Batch,
        read: impl Fn(&OwnedFd, &mut [libc::iovec]) -> io::Result<Got>,
    ) -> io::Result<()> {
        let (mut frames, mut bytes) = (0, 0);
        let mut result = Ok(());
        // Reads are bounded too: a stream of frames that are dropped must not keep us here.
        for _ in 0..into.room() {
            let Some(frame) = into.slot() else { break };
            match self.recv_one(frame, &read) {
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
            // A packet socket says once that its interface went down; it goes on when that is up again.
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(()),
            _ => Err(error),
        })
    }

    fn recv_one(
        &mut self,
        frame: &mut Frame,
        read: impl Fn(&OwnedFd, &mut [libc::iovec]) -> io::Result<Got>,
    ) -> io::Result<Option<Reason>> {
        self.spare = self.spare.take().or_else(|| self.pool.take());
        let mut header = [0; vnet::LEN];
        // Room is left in the head for a tag to be put back.
        let head_len = HEAD - VLAN_TAG;
        let head = frame.fill_head(head_len);
        let mut surplus = [0u8];
        let rest = match &self.spare {
            Some(buffer) => iovec(buffer.as_mut_ptr(), buffer.size()),
            // One byte shows whether there would have been more.
            None => iovec(surplus.as_mut_ptr(), 1),
        };
        let mut iovecs = [iovec(header.as_mut_ptr(), vnet::LEN), iovec(head.as_mut_ptr(), head_len), rest];
        let Got { bytes, tag } = read(&self.fd, &mut iovecs)?;
        let Some(len) = bytes.checked_sub(vnet::LEN) else {
            return Ok(Some(Reason::Runt));
        };
        frame.shorten_head(len);
        if len > head_len {
            match self.spare.take() {
                Some(buffer) => buffer.give_to(frame, len - head_len),
                None => return Ok(Some(Reason::NoBuffer)),
            }
        }
        let Some(offload) = vnet::parse(&header) else {
            return Ok(Some(Reason::Malformed));
        };
        frame.set_offload(offload);
        if let Some(tag) = tag {
            frame.insert_tag(tag);
        }
        Ok(None)
    }

    /// Writes each frame with its header; what the kernel does not take is counted.
    pub(super) fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        let (mut sent, mut bytes) = (0, 0);
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
        Ok(())
    }

    fn send_one(&self, frame: &Frame) -> nix::Result<()> {
        let mut header = vnet::make(frame);
        let mut iovecs = Iovecs::new();
        iovecs.push(iovec(header.as_mut_ptr(), vnet::LEN));
        frame.iovecs(&mut iovecs);
        loop {
            // SAFETY: the entries name the header and the frame's bytes, readable while they are borrowed.
            let written = unsafe { libc::writev(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
            match Errno::result(written) {
                Err(Errno::EINTR) => {}
                other => return other.map(|_| ()),
            }
        }
    }
}

/// `readv`, as [`Kernel::recv`] wants it.
pub(super) fn readv(fd: &OwnedFd, iovecs: &mut [libc::iovec]) -> io::Result<Got> {
    // SAFETY: the caller's entries name memory that is its own to be written.
    let read = unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) };
    Ok(Got { bytes: Errno::result(read)? as usize, tag: None })
}

fn iovec(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// Why a frame was not taken, if the descriptor itself is still good.
fn reason(errno: Errno) -> Option<Reason> {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Some(Reason::NoRoom),
        // A tap says EIO when its interface is down, a packet socket ENETDOWN.
        Errno::EIO | Errno::ENETDOWN => Some(Reason::Down),
        Errno::EINVAL => Some(Reason::Malformed),
        Errno::EMSGSIZE => Some(Reason::TooLong),
        _ => None,
    }
}
