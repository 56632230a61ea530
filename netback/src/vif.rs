//! A connected vif as a port of the bridge: the shell that drives both rings' cores.

mod egress;
mod ingress;

use crate::assemble::Fault;
use crate::backlog::{Backlog, Limits};
use crate::handshake::{Agreed, Events};
use bridge::{Batch, Caps, Frames, Port, Stats};
use egress::Egress;
use hypervisor::{Access, Channel, Hypervisor};
use ingress::Ingress;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use ring_abi::DomId;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Why a vif ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The guest broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The guest's end of an event channel is gone, or a call at the seam failed as a whole.
    #[error(transparent)]
    Seam(#[from] hypervisor::Error),
    /// The system refused something.
    #[error(transparent)]
    Ours(#[from] io::Error),
}

/// How vifs are to run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Packets taken from a guest in one round, at most; the bridge may take fewer.
    pub burst: usize,
    /// Bounds of what waits for a guest without buffers.
    pub backlog: Limits,
    /// Offer TCP segmentation.
    pub gso: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { burst: 256, backlog: Limits::default(), gso: true }
    }
}

/// Told, once, why a vif has ended by itself.
pub type OnFailure = Box<dyn FnOnce(&Failed) + Send>;

/// A connected vif.
pub struct Vif {
    ingress: Ingress,
    egress: Egress,
    /// The transmit ring's channel and, if it has one of its own, the receive ring's.
    tx_event: Box<dyn Channel>,
    rx_event: Option<Box<dyn Channel>>,
    epoll: Epoll,
    caps: Caps,
    stats: Arc<Stats>,
    /// The guest was asked to notify.
    armed: bool,
    on_failure: Option<OnFailure>,
}

impl Vif {
    /// Connects to what the front end in domain `guest` has set up. `on_failure` is called, in the bridge's thread,
    /// if the vif ends by itself.
    ///
    /// # Errors
    /// [`Failed`]: a ring cannot be mapped, or an event channel not be joined.
    pub fn connect(
        hv: &Arc<dyn Hypervisor>,
        guest: DomId,
        agreed: &Agreed,
        config: &Config,
        on_failure: OnFailure,
    ) -> Result<Self, Failed> {
        let stats = Arc::<Stats>::default();
        let tx = hv.map_contiguous(guest, &[agreed.tx], Access::ReadWrite)?;
        let rx = hv.map_contiguous(guest, &[agreed.rx], Access::ReadWrite)?;
        let (tx_event, rx_event) = match agreed.events {
            Events::Both(port) => (hv.connect(guest, port)?, None),
            Events::Split { tx, rx } => (hv.connect(guest, tx)?, Some(hv.connect(guest, rx)?)),
        };
        let ingress = Ingress::new(hv.clone(), guest, tx, config.burst, stats.clone())?;
        let egress = Egress::new(hv.clone(), guest, rx, Backlog::new(config.backlog), stats.clone())?;
        let epoll = wait_for(&[Some(&*tx_event), rx_event.as_deref()], ingress.fd())?;
        let (caps, on_failure) = (agreed.caps, Some(on_failure));
        Ok(Self { ingress, egress, tx_event, rx_event, epoll, caps, stats, armed: true, on_failure })
    }

    /// Tells the owner once; the bridge drops a port that failed.
    fn check<T>(&mut self, outcome: Result<T, Failed>) -> io::Result<T> {
        outcome.map_err(|failed| {
            if let Some(tell) = self.on_failure.take() {
                tell(&failed);
            }
            match failed {
                Failed::Ours(error) => error,
                other => io::Error::other(other),
            }
        })
    }

    /// Takes the events that woke us. Without having asked for any there is none worth a system call.
    #[inline]
    fn take_events(&mut self) -> Result<(), Failed> {
        if std::mem::take(&mut self.armed) {
            self.tx_event.take()?;
            if let Some(event) = &self.rx_event {
                event.take()?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut Batch) -> Result<(), Failed> {
        self.take_events()?;
        self.egress.drain()?;
        self.ingress.reap();
        self.ingress.recv(into)
    }

    fn commit(&mut self) -> Result<(), Failed> {
        self.ingress.reap();
        let tx = self.ingress.commit().wanted();
        let rx = self.egress.commit().wanted();
        match &self.rx_event {
            Some(event) if rx => event.notify()?,
            _ => {}
        }
        if tx || (rx && self.rx_event.is_none()) {
            self.tx_event.notify()?;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<bool, Failed> {
        self.armed = true;
        self.take_events()?;
        self.armed = true;
        Ok(self.ingress.arm()? | self.egress.arm()?)
    }
}

fn wait_for(events: &[Option<&dyn Channel>], other: BorrowedFd<'_>) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let fds = events.iter().flatten().map(|event| event.as_fd());
    for fd in fds.chain([other]) {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(epoll)
}

impl Port for Vif {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        let outcome = self.receive(into);
        self.check(outcome)
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<()> {
        let outcome = self.egress.send(frames);
        self.check(outcome)
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.commit();
        self.check(outcome)
    }

    fn arm(&mut self) -> io::Result<bool> {
        let outcome = self.ask();
        self.check(outcome)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Drop for Vif {
    fn drop(&mut self) {
        self.egress.close();
    }
}

impl std::fmt::Debug for Vif {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vif").field("caps", &self.caps).finish_non_exhaustive()
    }
}
