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

use crate::{Batch, Caps, Frames, Interest, Iovecs, Pin, Stats};

/// Bytes that a port lends at least, for the payload of the longest frame: an IP packet of 65,535 bytes with its Ethernet
/// header, less a part of the frame's head.
pub const LENT: usize = 1 << 16;

/// A port of a switch. A worker thread owns it and calls it in rounds: `recv`, then `send` any number of times, then
/// `flush`; `arm` before it waits for the port's `fd`, and `take_events` once that is readable. Frames that a port does not
/// take wait in the worker, which sends them again once the port has room.
///
/// An `Err` from any method means that the port has failed: only this port is removed from the switch and dropped, with
/// one log line; one of kind [`io::ErrorKind::BrokenPipe`] says that the port's peer has gone, which is no failure. A frame
/// that cannot be received or sent is counted in [`Port::stats`] and is no error.
///
/// No method may block. An armed port is still called (`recv` and `flush`) about once a second while any port has frames, and
/// every 16 s otherwise, so that it can handle its timeouts; for a finer resolution its `fd` must become readable. No frame
/// may depend on that call.
///
/// A port that sends a probe once a round, and counts what it is sent:
///
/// ```
/// use bridge::{Batch, Caps, Frame, Frames, Interest, Port, Stats};
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
///     fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
///         self.stats.tx(frames.len() as u64, frames.iter().map(|frame| frame.len() as u64).sum());
///         Ok(frames.len())
///     }
///
///     fn flush(&mut self) -> io::Result<()> {
///         Ok(()) // Nothing is queued.
///     }
///
///     fn arm(&mut self, _: Interest) -> io::Result<bool> {
///         Ok(false) // The worker's rare calls suffice, and there is always room.
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

    /// Receives frames into `into` until that is full: further ones are received in the next round.
    fn recv(&mut self, into: &mut Batch) -> io::Result<()>;

    /// Receives as [`Port::recv`] does, where all frames go to the port `to`, the other end of a wire. A port that reads its
    /// frames from elsewhere reads them into the memory that `to` lends, so that they need no copy.
    fn recv_for(&mut self, to: &mut dyn Port, into: &mut Batch) -> io::Result<()> {
        let _ = to;
        self.recv(into)
    }

    /// Lends memory for the payload of one frame, of any length: appends its pieces, [`LENT`] bytes at least, or nothing. The
    /// frame's first `head_len` bytes are elsewhere, and will stand before the first piece. The memory may be written until the
    /// next call, and what is not kept by [`Port::keep_lent`] is lent again. Whoever is behind the port may see what is written.
    ///
    /// `true` from a port that lends, even if it has nothing to lend now: it is full then, so that further frames are better
    /// left where they are than read to wait for it.
    fn lend(&mut self, head_len: usize, into: &mut Iovecs) -> bool {
        let _ = (head_len, into);
        false
    }

    /// Keeps the first `pieces` of what was lent last for one frame, while the pin or a clone of it lives.
    fn keep_lent(&mut self, pieces: usize) -> Option<Pin> {
        let _ = pieces;
        None
    }

    /// Takes `frames`, which fit [`Port::caps`], in order, and returns how many: those that were sent, or dropped and counted.
    /// It takes all but those for which it has no room now. The peer need not be notified before `flush`.
    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize>;

    /// Commits the round: publishes requests and responses and notifies the peer once. Called at the end of every round
    /// for every port, even an armed one, since any port may have released frames of any other: without anything to
    /// commit it must be cheap.
    fn flush(&mut self) -> io::Result<()>;

    /// Enables notification by `fd` for what the worker needs of the port, before it waits: frames, and room after
    /// [`Port::send`] had none. `true` if it came before that took effect, so that the port is to be called again instead.
    fn arm(&mut self, needs: Interest) -> io::Result<bool>;

    /// Whether an armed port has what it was armed for. It neither takes events nor changes what it is armed for, so that the
    /// worker can tell whether a notification is missing. A port whose descriptor is readable by itself has nothing to add.
    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        let _ = needs;
        Ok(false)
    }

    /// Takes the events that have made `fd` readable (reads an eventfd). Called when it was found readable, and not before:
    /// looking for an event takes a system call. What it leaves makes `fd` readable again. A descriptor that has the frames
    /// themselves has no events.
    fn take_events(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The descriptor that is readable (level-triggered) when an armed port has something to do. It never changes.
    fn fd(&self) -> BorrowedFd<'_>;
}
