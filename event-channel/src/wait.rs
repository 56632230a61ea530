// Not a core: does I/O or calls a hypervisor.

//! Event channels that a program waits for: those with a file descriptor.

use crate::{Channel, EventChannels};
use std::os::fd::AsFd;

/// A [`Channel`] with a descriptor, which is readable while an event is pending, and once the other end is closed
/// where the hypervisor can tell.
pub trait WaitChannel: Channel + AsFd {}
impl<T: Channel + AsFd> WaitChannel for T {}

/// [`EventChannels`] that can be waited for; used as `Arc<dyn WaitEventChannels>`.
pub trait WaitEventChannels: EventChannels<Channel = Box<dyn WaitChannel>> {}
impl<T: EventChannels<Channel = Box<dyn WaitChannel>>> WaitEventChannels for T {}
