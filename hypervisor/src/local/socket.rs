//! Packets with descriptors over a Unix socket that preserves message boundaries (SOCK_SEQPACKET).
#![allow(unsafe_code)] // Takes ownership of descriptors that the kernel installed.

use super::wire::MAX_MESSAGE;
use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket, sockopt,
};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Descriptors beside one message, at most.
pub(super) const MAX_FDS: usize = 2;
/// The most that the kernel passes with one message (SCM_MAX_FD of include/net/scm.h). All are received: what is not, the
/// kernel closes in `recvmsg`, which may take as long as the sender likes.
const SCM_MAX_FD: usize = 253;

/// A received packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Whether it was longer than [`MAX_MESSAGE`], had more than [`MAX_FDS`] descriptors, or more than this process
    /// may open.
    pub(super) truncated: bool,
}

/// Creates a SOCK_SEQPACKET socket.
pub(super) fn new(flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)
        .map_err(|e| Error::io("create a socket", e))
}

/// Connects to the broker at `path`; the socket blocks.
///
/// # Errors
/// [`Error::Io`], most likely because no broker listens there.
pub(super) fn connect_to(path: &Path) -> Result<OwnedFd> {
    let what = || format!("connect to the broker at {}", path.display());
    let fd = new(SockFlag::empty())?;
    let address = UnixAddr::new(path).map_err(|e| Error::io(what(), e))?;
    connect(fd.as_raw_fd(), &address).map_err(|e| Error::io(what(), e))?;
    Ok(fd)
}

/// Sets a timeout for each send and receive.
///
/// # Errors
/// [`Error::Io`] if `setsockopt` fails.
pub(super) fn set_timeout(fd: &OwnedFd, seconds: i64) -> Result<()> {
    let time = nix::sys::time::TimeVal::new(seconds, 0);
    nix::sys::socket::setsockopt(fd, sockopt::ReceiveTimeout, &time)
        .and_then(|()| nix::sys::socket::setsockopt(fd, sockopt::SendTimeout, &time))
        .map_err(|e| Error::io("set a socket's timeout", e))
}

/// Sends one packet.
///
/// # Errors
/// The error of `sendmsg`; `EAGAIN` where the receiver does not read.
pub(super) fn send(fd: impl AsFd, bytes: &[u8], fds: &[impl AsRawFd]) -> nix::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[] } else { &rights[..] };
    let fd = fd.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(fd, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Receives one packet; `None` once the other end is closed, or for an empty packet without descriptors.
///
/// # Errors
/// The error of `recvmsg`; `EAGAIN` where no packet is queued.
pub(super) fn receive(fd: impl AsFd) -> nix::Result<Option<Packet>> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: all zeroes is a valid, empty message header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_LEN;
    let len = loop {
        // SAFETY: the header describes two local buffers that outlive the call.
        let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match Errno::result(got) {
            Err(Errno::EINTR) => {}
            other => break other? as usize,
        }
    };
    let fds = received(&header);
    let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    bytes.truncate(len);
    let truncated = truncated || fds.len() > MAX_FDS;
    Ok((len > 0 || !fds.is_empty()).then_some(Packet { bytes, fds, truncated }))
}

/// The size of a control message of [`SCM_MAX_FD`] descriptors, rounded up as by `CMSG_SPACE`.
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + (SCM_MAX_FD + 1) * size_of::<RawFd>();
const _: () = assert!(CONTROL_LEN.is_multiple_of(align_of::<libc::cmsghdr>()));

/// A buffer aligned for control messages.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Returns every descriptor that the kernel installed, even if it dropped others of the same message: `nix` returns
/// none then, and leaks those that were installed.
#[allow(clippy::cast_ptr_alignment)] // Read unaligned.
fn received(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: walks the control messages that the kernel wrote into the buffer, within the length that it set.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(part) = at.as_ref() {
            if (part.cmsg_level, part.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = part.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(at).cast::<RawFd>();
                // Each was installed by this `recvmsg`, and nothing else owns it.
                fds.extend(
                    (0..bytes / size_of::<RawFd>())
                        .map(|n| OwnedFd::from_raw_fd(data.add(n).read_unaligned())),
                );
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    fds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_fds() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// Other tests of the process open descriptors too, so the bound only has to be below what a leak would add.
    #[test]
    fn packet_with_too_many_descriptors_is_truncated_and_leaks_none() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let before = open_fds();
        for _ in 0..200 {
            for (bytes, count) in [(b"x".as_slice(), 3), (b"x", SCM_MAX_FD)] {
                send(&a, bytes, &vec![null.as_raw_fd(); count]).unwrap();
                let packet = receive(&b).unwrap().unwrap();
                assert!(packet.truncated);
                assert_eq!(packet.fds.len(), count);
            }
        }
        assert!(open_fds() < before + 150, "descriptors leak");
    }

    #[test]
    fn packet_longer_than_any_message_is_truncated() {
        let (a, b) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        send(&a, &[1; MAX_MESSAGE + 1], &[] as &[OwnedFd]).unwrap();
        assert!(receive(&b).unwrap().unwrap().truncated);
        send(&a, &[1; MAX_MESSAGE], &[] as &[OwnedFd]).unwrap();
        assert!(!receive(&b).unwrap().unwrap().truncated);
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }
}
