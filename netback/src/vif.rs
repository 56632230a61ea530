//! A connected vif as a port of the bridge: the shell that drives both rings' cores.

mod copied;
mod egress;
mod ingress;
mod mapped;

use crate::assemble::Fault;
use crate::backlog::{Backlog, Limits};
use crate::handshake::{Agreed, Events};
use crate::journals::Journals;
use crate::rx::Rx;
use crate::tx::Tx;
use bridge::{Batch, Caps, Frames, Port, Stats};
use egress::Egress;
use event_channel::{Doorbell, Ear};
use hypervisor::{Access, Channel, Contiguous, Hypervisor, Keep, Kept};
use ingress::Ingress;
use ring_abi::DomId;
use ring_abi::ring::Notify;
use ring_abi::ring::journal::Left;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a vif ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The guest broke the protocol.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The guest's end of an event channel is gone, or a call at the seam failed as a whole.
    #[error(transparent)]
    Seam(#[from] hypervisor::Error),
    /// What an earlier process has left of the rings does not fit them.
    #[error(transparent)]
    Left(#[from] Left),
    /// An earlier process has left nothing of this connection.
    #[error("nothing is kept of its rings")]
    Nothing,
    /// The system refused something.
    #[error(transparent)]
    Ours(#[from] io::Error),
}

impl From<ring_abi::ring::BadMemory> for Failed {
    fn from(error: ring_abi::ring::BadMemory) -> Self {
        Self::Ours(io::Error::other(error))
    }
}

/// How vifs are to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Packets taken from a guest in one round, at most; the bridge may take fewer.
    pub burst: usize,
    /// Bounds of what waits for a guest without buffers.
    pub backlog: Limits,
    /// Offer TCP segmentation.
    pub gso: bool,
    /// Where rings' journals are kept, so that a process which is killed can have a successor that front ends do not
    /// notice. Costs each packet a few stores, and payloads a copy where they could be mapped.
    pub keep: Option<Keep>,
}

/// The connection that a vif begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin<'a> {
    /// A new one, of which nothing is kept.
    New,
    /// A new one, with journals.
    Noted(&'a Journals),
    /// One that an earlier process has served.
    Left(&'a Journals),
}

impl Default for Config {
    fn default() -> Self {
        Self { burst: 256, backlog: Limits::default(), gso: true, keep: None }
    }
}

/// Told, once, why a vif has ended by itself.
pub type OnFailure = Box<dyn FnOnce(&Failed) + Send>;

/// A connected vif.
pub struct Vif {
    ingress: Ingress,
    egress: Egress,
    /// The transmit ring's channel and, if it has one of its own, the receive ring's.
    tx_bell: Doorbell,
    rx_bell: Option<Doorbell>,
    ear: Ear,
    caps: Caps,
    stats: Arc<Stats>,
    /// The guest was asked to notify.
    armed: bool,
    /// There was work since the last event was taken.
    worked: bool,
    started: Instant,
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
        Self::begin(hv, guest, agreed, config, Begin::New, on_failure)
    }

    /// As [`Vif::connect`], with journals.
    pub(crate) fn begin(
        hv: &Arc<dyn Hypervisor>,
        guest: DomId,
        agreed: &Agreed,
        config: &Config,
        begin: Begin<'_>,
        on_failure: OnFailure,
    ) -> Result<Self, Failed> {
        let stats = Arc::<Stats>::default();
        let map = |gref| hv.map_contiguous(guest, &[gref], Access::ReadWrite);
        let bell = |port| hv.connect(guest, port).map(bell);
        let (mut tx_bell, mut rx_bell) = match agreed.events {
            Events::Both(port) => (bell(port)?, None),
            Events::Split { tx, rx } => (bell(tx)?, Some(bell(rx)?)),
        };
        let (mut tx, mut rx) = (Tx::attach(map(agreed.tx)?, config.burst)?, Rx::attach(map(agreed.rx)?)?);
        if take_up(&mut tx, &mut rx, agreed, begin)? {
            // Nobody knows what the front end was told of.
            tx_bell.want(Notify::Yes);
            rx_bell.iter_mut().for_each(|bell| bell.want(Notify::Yes));
        }
        let copied = hv.maps_by_call() || !matches!(begin, Begin::New);
        let ingress = Ingress::new(hv.clone(), guest, tx, config.burst, copied, stats.clone())?;
        let egress = Egress::new(hv.clone(), guest, rx, Backlog::new(config.backlog), stats.clone());
        let ear = Ear::new()?;
        ingress.fd().map_or(Ok(()), |fd| ear.add(fd))?;
        bells(&tx_bell, &rx_bell).try_for_each(|bell| ear.add(bell))?;
        Ok(Self {
            ingress,
            egress,
            tx_bell,
            rx_bell,
            ear,
            caps: agreed.caps,
            stats,
            armed: true,
            worked: true,
            started: Instant::now(),
            on_failure: Some(on_failure),
        })
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
        if std::mem::take(&mut self.armed) { self.take_all() } else { Ok(()) }
    }

    fn take_all(&mut self) -> Result<(), Failed> {
        // While they are not listened to they need not be taken either.
        if self.ear.uncover(bells(&self.tx_bell, &self.rx_bell))? {
            self.tx_bell.take()?;
            if let Some(bell) = &mut self.rx_bell {
                bell.take()?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut Batch) -> Result<(), Failed> {
        self.take_events()?;
        let before = into.len();
        self.worked |= self.egress.drain()?;
        self.ingress.reap();
        let outcome = self.ingress.recv(into);
        self.worked |= into.len() > before;
        outcome
    }

    #[inline]
    fn commit(&mut self) -> Result<(), Failed> {
        self.ingress.reap();
        self.tx_bell.want(self.ingress.commit());
        let rx = self.egress.commit();
        self.rx_bell.as_mut().unwrap_or(&mut self.tx_bell).want(rx);
        self.tx_bell.flush()?;
        if let Some(bell) = &mut self.rx_bell {
            bell.flush()?;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<bool, Failed> {
        self.slow_down()?;
        self.take_all()?;
        self.armed = true;
        Ok(self.ingress.arm()? | self.egress.arm()?)
    }

    /// Covers the ear if the guest has rung too often for nothing (XSA-332).
    fn slow_down(&mut self) -> Result<(), Failed> {
        let (now, worked) = (self.started.elapsed(), std::mem::take(&mut self.worked));
        let pauses = [Some(&mut self.tx_bell), self.rx_bell.as_mut()];
        let pause = pauses.into_iter().flatten().filter_map(|bell| bell.worked(worked, now)).max();
        match pause {
            Some(pause) if !self.ear.is_covered() => {
                tracing::debug!(?pause, "a guest rings for nothing");
                Ok(self.ear.cover(bells(&self.tx_bell, &self.rx_bell), pause)?)
            }
            _ => Ok(()),
        }
    }
}

fn bell(channel: Box<dyn Channel>) -> Doorbell {
    Doorbell::new(channel, Duration::ZERO)
}

/// Begins or takes up the rings' journals; `true` where an earlier process served the rings.
fn take_up(
    tx: &mut Tx<Contiguous, Kept>,
    rx: &mut Rx<Contiguous, Kept>,
    agreed: &Agreed,
    begin: Begin<'_>,
) -> Result<bool, Failed> {
    let (tx, rx) = (tx.noted(), rx.noted());
    let octets = [tx.journal_octets(), rx.journal_octets()];
    match begin {
        Begin::New => Ok(false),
        Begin::Noted(journals) => {
            let [of_tx, of_rx] = journals.fresh(agreed, octets)?;
            tx.note(of_tx).map_err(Left::from)?;
            rx.note(of_rx).map_err(Left::from)?;
            Ok(false)
        }
        Begin::Left(journals) => {
            let [of_tx, of_rx] = journals.left(agreed, octets)?.ok_or(Failed::Nothing)?;
            tx.resume(of_tx)?;
            rx.resume(of_rx)?;
            Ok(true)
        }
    }
}

fn bells<'b>(tx: &'b Doorbell, rx: &'b Option<Doorbell>) -> impl Iterator<Item = BorrowedFd<'b>> {
    [Some(tx), rx.as_ref()].into_iter().flatten().map(|bell| bell.as_fd())
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
        self.ear.as_fd()
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
