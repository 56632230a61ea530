//! A device node in /dev/xen, and its ioctls.
#![allow(unsafe_code)] // ioctl takes a pointer to a structure that depends on its number.

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
    /// Opens `/dev/xen/NAME` for reading and writing, nonblocking.
    pub(super) fn open(name: &str) -> Result<Self> {
        let path = format!("/dev/xen/{name}");
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        Ok(Self { file: opened.map_err(|e| open_error(path, e))? })
    }

    /// Calls an ioctl and returns its result, zero or above.
    ///
    /// # Safety
    /// `argument` points at the structure that `code` takes, and every pointer in it is valid.
    pub(super) unsafe fn ioctl<T>(&self, code: u64, argument: *mut T) -> nix::Result<u32> {
        // SAFETY: the descriptor is open; the argument is valid by the caller's contract.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), code, argument) };
        Errno::result(result).map(i32::cast_unsigned)
    }
}

fn open_error(path: String, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::NotFound => " (in a domain of a Xen host: modprobe -a xen-gntdev xen-gntalloc xen-evtchn)",
        _ => "",
    };
    Error::io(path + hint, error)
}
