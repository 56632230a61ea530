//! A connection before each of whose requests something happens.

use event_loop::Stream;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// A stream that calls a function before each write.
pub struct HookedStream {
    stream: Box<dyn Stream>,
    before_write: Box<dyn FnMut() + Send>,
}

impl HookedStream {
    /// Calls `before_write` before each write to `stream`.
    pub fn new(stream: Box<dyn Stream>, before_write: impl FnMut() + Send + 'static) -> HookedStream {
        HookedStream { stream, before_write: Box::new(before_write) }
    }
}

impl Read for HookedStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }
}

impl Write for HookedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.before_write)();
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl AsFd for HookedStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
