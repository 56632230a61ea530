// Not a core: does I/O or calls a hypervisor.

//! A byte stream that can be polled.

use std::io::{Read, Write};
use std::os::fd::AsFd;

/// A byte stream with a descriptor to poll: what a store connection runs over. A socket, `/dev/xen/xenbus`, or a box
/// of either.
pub trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send + ?Sized> Stream for T {}
