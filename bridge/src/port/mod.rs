// Not a core: does I/O or calls a hypervisor.

//! Ports: the sources and destinations of frames.

mod net_error;
pub mod netdev;
pub mod packet;
pub mod pair;
mod rtnetlink;
pub mod tap;
mod vnet;
mod vnet_fd;

use std::{io, os::fd::BorrowedFd, sync::Arc};

use crate::{Batch, Caps, Frames, Stats};

/// A port of a switch. A worker thread owns it and calls it in rounds: `recv`, then `send` any number of times, then
/// `flush`; and `arm` before it waits for the port's `fd`.
///
/// An `Err` from any method means that the port has failed: only this port is removed from the switch and dropped, with
/// one log line. A frame that cannot be received or sent is counted in [`Port::stats`] and is no error.
///
/// No method may block. An armed port is still called about once a second (`recv` and `flush`), so that it can handle
/// its timeouts; for a finer resolution its `fd` must become readable.
pub trait Port: Send {
    /// The offloads and frames that the port takes. Read for each batch, so that they may change; a changed mtu is used
    /// from the next batch on.
    fn caps(&self) -> Caps;

    /// The port's counters. The port counts the frames that it receives, sends and drops; the switch adds its own
    /// drops.
    fn stats(&self) -> &Arc<Stats>;

    /// Receives frames into `into` until that is full: further ones are received in the next round. Also clears the
    /// readiness of `fd` (reads an eventfd), and handles completions of earlier sends, such as by sending queued
    /// frames.
    fn recv(&mut self, into: &mut Batch) -> io::Result<()>;

    /// Sends `frames`, which fit [`Port::caps`], in order. A frame that cannot be sent now is either queued by the port
    /// (a clone keeps its pages; the queue must be bounded, in frames and in bytes) or dropped and counted. The peer
    /// need not be notified before `flush`.
    fn send(&mut self, frames: Frames<'_>) -> io::Result<()>;

    /// Commits the round: publishes requests and responses and notifies the peer once. Called at the end of every round
    /// for every port, even an armed one, since any port may have released frames of any other: without anything to
    /// commit it must be cheap.
    fn flush(&mut self) -> io::Result<()>;

    /// Enables notification by `fd`, before the worker waits for it. `true` if frames came in before that took effect,
    /// so that the port is to be called again instead.
    fn arm(&mut self) -> io::Result<bool>;

    /// The descriptor that is readable (level-triggered) when an armed port has something to do. It never changes.
    fn fd(&self) -> BorrowedFd<'_>;
}
