//! A connected vif as a port of the bridge: the shell that drives both rings' cores.

mod copied;
mod egress;
mod ingress;
mod mapped;

use crate::assemble::Fault;
use crate::backlog::{Backlog, Limits};
use crate::handshake::{Agreed, Events};
use crate::response_logs::ResponseLogs;
use crate::rx::Rx;
use crate::tx::Tx;
use bridge::{Batch, Caps, Frames, Port, Stats};
use egress::Egress;
use event_channel::{EventSet, Notifier};
use hypervisor::{Access, Channel, Contiguous, Hypervisor, InflightDir, InflightRegion};
use ingress::Ingress;
use ring_abi::DomId;
use ring_abi::ring::Notify;
use ring_abi::ring::response_log::ResumeError;
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
    Hypervisor(#[from] hypervisor::Error),
    /// What an earlier process has left of the rings does not fit them.
    #[error(transparent)]
    ResumeError(#[from] ResumeError),
    /// An earlier process has left nothing of this connection.
    #[error("nothing is kept of its rings")]
    Nothing,
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ring_abi::ring::BadMemory> for Failed {
    fn from(error: ring_abi::ring::BadMemory) -> Self {
        Self::Io(io::Error::other(error))
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
    /// Where rings' response logs are kept, so that a process which is killed can have a successor that frontends
    /// do not notice. Costs each packet a few stores, and payloads a copy where they could be mapped.
    pub keep: Option<InflightDir>,
}

/// The connection that a vif begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recovery<'a> {
    /// A new one, of which nothing is kept.
    None,
    /// A new one, with response logs.
    Record(&'a ResponseLogs),
    /// One that an earlier process has served.
    Resume(&'a ResponseLogs),
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
    tx_notifier: Notifier,
    rx_notifier: Option<Notifier>,
    event_set: EventSet,
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
    /// Connects to what the frontend in domain `guest` has set up. `on_failure` is called, in the bridge's thread,
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
        Self::begin(hv, guest, agreed, config, Recovery::None, on_failure)
    }

    /// As [`Vif::connect`], with response logs.
    pub(crate) fn begin(
        hv: &Arc<dyn Hypervisor>,
        guest: DomId,
        agreed: &Agreed,
        config: &Config,
        begin: Recovery<'_>,
        on_failure: OnFailure,
    ) -> Result<Self, Failed> {
        let stats = Arc::<Stats>::default();
        let map = |gref| hv.map_contiguous(guest, &[gref], Access::ReadWrite);
        let notifier = |port| hv.bind_interdomain(guest, port).map(notifier);
        let (mut tx_notifier, mut rx_notifier) = match agreed.events {
            Events::Both(port) => (notifier(port)?, None),
            Events::Split { tx, rx } => (notifier(tx)?, Some(notifier(rx)?)),
        };
        let (mut tx, mut rx) = (Tx::attach(map(agreed.tx)?, config.burst)?, Rx::attach(map(agreed.rx)?)?);
        if take_up(&mut tx, &mut rx, agreed, begin)? {
            // Nobody knows what the frontend was told of.
            tx_notifier.want(Notify::Yes);
            rx_notifier.iter_mut().for_each(|notifier| notifier.want(Notify::Yes));
        }
        let copied = hv.map_is_expensive() || !matches!(begin, Recovery::None);
        let ingress = Ingress::new(hv.clone(), guest, tx, config.burst, copied, stats.clone())?;
        let egress = Egress::new(hv.clone(), guest, rx, Backlog::new(config.backlog), stats.clone());
        let event_set = EventSet::new()?;
        ingress.fd().map_or(Ok(()), |fd| event_set.add(fd))?;
        notifiers(&tx_notifier, &rx_notifier).try_for_each(|notifier| event_set.add(notifier))?;
        Ok(Self {
            ingress,
            egress,
            tx_notifier,
            rx_notifier,
            event_set,
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
                Failed::Io(error) => error,
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
        if self.event_set.unmask(notifiers(&self.tx_notifier, &self.rx_notifier))? {
            self.tx_notifier.take()?;
            if let Some(notifier) = &mut self.rx_notifier {
                notifier.take()?;
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
        self.tx_notifier.want(self.ingress.commit());
        let rx = self.egress.commit();
        self.rx_notifier.as_mut().unwrap_or(&mut self.tx_notifier).want(rx);
        self.tx_notifier.flush()?;
        if let Some(notifier) = &mut self.rx_notifier {
            notifier.flush()?;
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
        let pauses = [Some(&mut self.tx_notifier), self.rx_notifier.as_mut()];
        let pause = pauses.into_iter().flatten().filter_map(|notifier| notifier.worked(worked, now)).max();
        match pause {
            Some(pause) if !self.event_set.is_masked() => {
                tracing::debug!(?pause, "a guest rings for nothing");
                Ok(self.event_set.mask(notifiers(&self.tx_notifier, &self.rx_notifier), pause)?)
            }
            _ => Ok(()),
        }
    }
}

fn notifier(channel: Box<dyn Channel>) -> Notifier {
    Notifier::new(channel, Duration::ZERO)
}

/// Begins or takes up the rings' response logs; `true` where an earlier process served the rings.
fn take_up(
    tx: &mut Tx<Contiguous, InflightRegion>,
    rx: &mut Rx<Contiguous, InflightRegion>,
    agreed: &Agreed,
    begin: Recovery<'_>,
) -> Result<bool, Failed> {
    let (tx, rx) = (tx.logged(), rx.logged());
    let bytes = [tx.log_bytes(), rx.log_bytes()];
    match begin {
        Recovery::None => Ok(false),
        Recovery::Record(response_logs) => {
            let [of_tx, of_rx] = response_logs.fresh(agreed, bytes)?;
            tx.record(of_tx).map_err(ResumeError::from)?;
            rx.record(of_rx).map_err(ResumeError::from)?;
            Ok(false)
        }
        Recovery::Resume(response_logs) => {
            let [of_tx, of_rx] = response_logs.left(agreed, bytes)?.ok_or(Failed::Nothing)?;
            tx.resume(of_tx)?;
            rx.resume(of_rx)?;
            Ok(true)
        }
    }
}

fn notifiers<'b>(tx: &'b Notifier, rx: &'b Option<Notifier>) -> impl Iterator<Item = BorrowedFd<'b>> {
    [Some(tx), rx.as_ref()].into_iter().flatten().map(|notifier| notifier.as_fd())
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
        self.event_set.as_fd()
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
