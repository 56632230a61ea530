//! A request to a disk and its completion, with the pages that belong to it.

use ring_abi::blkif::Status;

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::queue::Operation;

/// One request, with the pages that it reads into or writes from.
#[derive(Debug)]
pub struct Request {
    /// The caller's identifier, given back in the [`Completion`].
    pub token: u64,
    /// What to do.
    pub operation: Operation,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// Bytes from the buffer's start, or to be discarded, whole sectors of the disk; 0 for a flush.
    pub bytes: usize,
    /// The pages; none for a flush or discard.
    pub buffer: Option<Buffer>,
}

impl Request {
    /// Makes a flush.
    pub fn flush(token: u64) -> Request {
        Request { token, operation: Operation::Flush, sector: 0, bytes: 0, buffer: None }
    }

    /// Makes a discard of `bytes` bytes, whole sectors of the disk, from `sector` on in units of 512 bytes. It is answered with
    /// `EOPNOTSUPP` by a backend that does not offer it: [`Negotiated::discard`](crate::Negotiated::discard).
    pub fn discard(token: u64, sector: u64, bytes: usize) -> Request {
        Request { token, operation: Operation::Discard, sector, bytes, buffer: None }
    }
}

/// A completed request.
#[derive(Debug)]
pub struct Completion {
    /// The request, with its buffer.
    pub request: Request,
    /// The status of the backend's response.
    pub status: Status,
}

impl Completion {
    /// Turns a status other than `OKAY` into an error.
    ///
    /// # Errors
    /// [`Error::Status`] if the backend failed the request.
    pub fn check(&self) -> Result<()> {
        let Request { operation, sector, .. } = self.request;
        match self.status {
            Status::OKAY => Ok(()),
            status => Err(Error::Status { operation, sector, status }),
        }
    }
}
