// Not a core: does I/O or calls a hypervisor.

//! Byte streams that can be polled.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

/// A byte stream with a descriptor to poll: what a store connection runs over. A socket, `/dev/xen/xenbus`, or a box
/// of either.
pub trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send + ?Sized> Stream for T {}

/// Connects a [`Stream`], and another after the first was lost.
pub trait Connector: Send + Sync {
    /// Opens a new stream.
    ///
    /// # Errors
    /// Nobody listens, or this process may not connect.
    fn connect(&self) -> io::Result<Box<dyn Stream>>;
}

impl<T: Connector + ?Sized> Connector for &T {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        (**self).connect()
    }
}

impl<T: Connector + ?Sized> Connector for Arc<T> {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        (**self).connect()
    }
}
