//! Packets with descriptors over a Unix socket that preserves message boundaries (SOCK_SEQPACKET).
#![allow(unsafe_code)] // Takes ownership of descriptors that the kernel installed.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a packet at most, of those that the kernel sends at once: paths of 4,096 bytes, each of which JSON may write as six, or those of a
/// chain of images, which are shorter.
const MAX_BYTES: usize = 128 << 10;
/// Descriptors beside a packet at most: those of a chain of images, each on a loop device.
const MAX_FDS: usize = 32;

/// Makes two connected sockets.
pub(super) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends a message, and descriptors beside it.
///
/// # Errors
/// That of sendmsg(2): `EPIPE` if the other end is closed.
pub(super) fn send<'fd>(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: impl IntoIterator<Item = BorrowedFd<'fd>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<RawFd> = fds.into_iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let socket = socket.as_fd().as_raw_fd();
    loop {
        match sendmsg::<()>(socket, &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(io::Error::from),
        }
    }
}

/// Waits for a message, with the descriptors beside it; `None` once the other end is closed.
///
/// # Errors
/// That of recvmsg(2), `EMFILE` if the descriptors are more than this process may open, or, without a number, that the message is not what
/// was expected.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let socket = socket.as_fd().as_raw_fd();
    let received = loop {
        match recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    // Where this process may open no more of them, the kernel installs what it can, and says that something is missing.
    for message in received.cmsgs().map_err(|_| Errno::EMFILE)? {
        if let ControlMessageOwned::ScmRights(installed) = message {
            // SAFETY: the kernel has just installed them, and nothing else owns them.
            fds.extend(installed.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = received.bytes;
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other(format!("a packet of more than {MAX_BYTES} bytes")));
    }
    if len == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..len])?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn message_arrives_with_its_descriptors_and_the_end_of_the_other_side_is_none() {
        let (one, other) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&one, &"text", [file.as_fd(), one.as_fd()]).unwrap();
        let (text, fds) = receive::<String>(&other).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("text", 2));
        let same = std::fs::File::from(fds.into_iter().next().unwrap());
        assert_eq!(same.metadata().unwrap().ino(), file.metadata().unwrap().ino());
        drop(one);
        assert!(receive::<String>(&other).unwrap().is_none());
        assert!(send(&other, &"text", []).is_err());
    }

    #[test]
    fn what_is_not_the_message_is_an_error() {
        let (one, other) = pair().unwrap();
        send(&one, &1, []).unwrap();
        assert!(receive::<String>(&other).is_err());
        send(&one, &"x".repeat(MAX_BYTES), []).unwrap();
        assert!(receive::<String>(&other).unwrap_err().to_string().contains("more than"));
    }
}
