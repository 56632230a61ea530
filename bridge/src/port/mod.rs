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
///
/// A port that sends a probe once a round, and counts what it is sent:
///
/// ```
/// use bridge::{Batch, Caps, Frame, Frames, Port, Stats};
/// use nix::sys::eventfd::EventFd;
/// use std::os::fd::{AsFd, BorrowedFd};
/// use std::{io, sync::Arc};
///
/// struct Probe {
///     frame: Frame,
///     stats: Arc<Stats>,
///     event: EventFd,
/// }
///
/// impl Port for Probe {
///     fn caps(&self) -> Caps {
///         Caps::plain(1500)
///     }
///
///     fn stats(&self) -> &Arc<Stats> {
///         &self.stats
///     }
///
///     fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
///         if let Some(slot) = into.slot() {
///             *slot = self.frame.clone();
///             self.stats.rx(1, self.frame.len() as u64);
///         }
///         Ok(())
///     }
///
///     fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
///         self.stats.tx(frames.len() as u64, frames.iter().map(|frame| frame.len() as u64).sum());
///         Ok(())
///     }
///
///     fn flush(&mut self) -> io::Result<()> {
///         Ok(()) // Nothing is queued.
///     }
///
///     fn arm(&mut self) -> io::Result<bool> {
///         Ok(false) // The worker's call once a second suffices.
///     }
///
///     fn fd(&self) -> BorrowedFd<'_> {
///         self.event.as_fd()
///     }
/// }
///
/// let frame = Frame::from_slice(&[0xff; 60]);
/// let mut probe = Probe { frame, stats: Arc::default(), event: EventFd::new()? };
/// let mut batch = Batch::new(16);
/// probe.recv(&mut batch)?;
/// probe.send(Frames::of(batch.frames()))?;
/// assert_eq!(probe.stats().read().tx_bytes, 60);
/// # Ok::<(), io::Error>(())
/// ```
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
