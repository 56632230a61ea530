//! A device node below /dev/xen: opening it, and calling its ioctls.
#![allow(unsafe_code)] // ioctl takes a pointer to whatever its number says.

use crate::error::{Error, Result};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// An open device node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) file: File,
}

impl Node {
    /// Opens `/dev/xen/NAME` for reading and writing, never to block.
    pub(super) fn open(name: &str) -> Result<Self> {
        let path = format!("/dev/xen/{name}");
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        Ok(Self { file: opened.map_err(|e| refused(path, e))? })
    }

    /// Calls an ioctl and gives its result, zero or above.
    ///
    /// # Safety
    /// `argument` is what `code` says it is, complete with everything it points at.
    pub(super) unsafe fn ioctl<T>(&self, code: u64, argument: *mut T) -> nix::Result<u32> {
        // SAFETY: the descriptor is open; the caller vouches for the rest.
        let answer = unsafe { libc::ioctl(self.file.as_raw_fd(), code, argument) };
        Errno::result(answer).map(i32::cast_unsigned)
    }
}

fn refused(path: String, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::NotFound => " (in a domain of a Xen host: modprobe -a xen-gntdev xen-gntalloc xen-evtchn)",
        _ => "",
    };
    Error::io(path + hint, error)
}
