//! The process at the other end of a connection, as a descriptor: its number may be another's by the time it is used.
#![allow(unsafe_code)] // Socket options and a system call that nix has no wrapper for.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// include/uapi/asm-generic/socket.h, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// As above, since Linux 6.16: whether descriptors may be sent to a socket. On others the option is unknown.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Returns a descriptor of the process that has made a connection.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; `ESRCH` or `EINVAL` where it has exited.
pub(super) fn of_connection(connection: impl AsFd) -> nix::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one integer of the length that is passed with it.
    let done = unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    Errno::result(done)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns a descriptor of process `pid`, which has made a connection that was just accepted: for a kernel that does not
/// tell it itself.
///
/// # Errors
/// `ESRCH` where it has exited, or may have: the connection is hung up.
pub(super) fn by_number(pid: u32, connection: impl AsFd) -> nix::Result<OwnedFd> {
    let process = open(pid)?;
    // Only now: the number was the process's when it was opened, if that has its end of the connection still.
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    let gone = fds[0].revents().is_none_or(|flags| flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
    if gone { Err(Errno::ESRCH) } else { Ok(process) }
}

/// Returns a descriptor of process `pid`, whichever that is by now: it is readable once the process has exited.
///
/// # Errors
/// `ESRCH` where there is no such process; `EINVAL` for 0, the number of one that this process cannot see.
pub(super) fn open(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers, and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Permits or refuses that descriptors are sent to a socket, where the kernel can: they could be of any kind.
pub(super) fn permit_descriptors(socket: impl AsFd, permit: bool) {
    let value = libc::c_int::from(permit);
    // SAFETY: the kernel reads one integer of the length that is passed with it. A kernel without the option refuses it.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn process_is_found_while_its_end_of_the_connection_is_open() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let own = std::process::id();
        by_number(own, &ours).unwrap();
        if !matches!(of_connection(&ours), Err(Errno::ENOPROTOOPT)) {
            of_connection(&ours).unwrap();
        }
        drop(theirs);
        assert_eq!(by_number(own, &ours).unwrap_err(), Errno::ESRCH);
    }
}
