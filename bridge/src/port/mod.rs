//! Where frames come from and go to.

mod kernel;
pub mod netdev;
pub mod packet;
pub mod pair;
mod rtnetlink;
pub mod tap;
mod vnet;

use std::{io, os::fd::BorrowedFd, sync::Arc};

use crate::{Batch, Caps, Frames, Stats};

/// One port of a switch. A worker thread owns it and calls it in rounds:
/// `recv`, then `send` any number of times, then `flush`; and `arm` before it leaves the port to its `fd`.
///
/// An `Err` from any method means that the port is dead: it alone is taken out of the switch and dropped,
/// with one line in the log. What concerns only a frame is counted in [`Port::stats`], never an error.
///
/// No method may block. A port that is left alone is still called about once a second (`recv` and `flush`),
/// so that it can notice time-outs of its own; for anything finer its `fd` should become readable.
pub trait Port: Send {
    /// What it can be sent. Asked for each batch, so it may change while the port lives; a changed mtu counts
    /// from the batch after.
    fn caps(&self) -> Caps;

    /// Its counters. The port counts what it receives, sends and drops; the switch adds its own drops.
    fn stats(&self) -> &Arc<Stats>;

    /// Puts what has come in into `into`, no more than its room: what is left is taken next round. Also
    /// takes notice of the readiness of its `fd` (an eventfd is read), and does what completions of earlier
    /// sends allow, such as sending what was queued.
    fn recv(&mut self, into: &mut Batch) -> io::Result<()>;

    /// Sends `frames` in order. They fit [`Port::caps`]. A frame that cannot be taken now is either queued
    /// by the port (a clone keeps its pages; the queue must be bounded, in frames and in bytes) or dropped
    /// and counted. The peer need not be told before `flush`.
    fn send(&mut self, frames: Frames<'_>) -> io::Result<()>;

    /// Commits the round: publishes what was sent, answers what was consumed, notifies the peer once. Called
    /// at the end of every round for every port, even one that is asleep, since frames of any port may have
    /// been let go by any other: with nothing to commit it must cost next to nothing.
    fn flush(&mut self) -> io::Result<()>;

    /// About to sleep: asks for notification by `fd`. `true` if more came in before that took effect, and
    /// so the port should be called again rather than waited for.
    fn arm(&mut self) -> io::Result<bool>;

    /// Becomes readable (level-triggered) when an armed port has something to do. The same for life.
    fn fd(&self) -> BorrowedFd<'_>;
}
