// Not a core: does I/O or calls a hypervisor.

//! A connected vif as a port of the bridge: drives both rings and their event channels.

mod copied;
mod egress;
mod flip;
mod ingress;
mod lent;
mod mapped;
mod round_result;

use crate::handshake::{EventPorts, Negotiated};
use crate::response_logs::ResponseLogs;
use crate::rx::Rx;
use crate::stats::Stats;
use crate::tx::Tx;
use crate::{Config, DataPath, ExitReason, StartError};
use bridge::{Batch, Caps, Frames, Interest, Iovecs, Pin, Port};
use egress::Egress;
use event_channel::{Notifier, NotifierPair, WaitChannel, WaitEventChannels};
use event_loop::EventSet;
use grant_table::{Access, Contiguous, GrantTable};
use inflight::InflightRegion;
use inflight::ResumeError;
use ingress::Ingress;
use ring_abi::DomId;
use ring_abi::ring::Notify;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Every descriptor's token: the bridge polls both rings for any event.
const ANY: u64 = 0;

/// How the rings of a connection start.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recovery<'a> {
    /// A new connection, without response logs.
    None,
    /// A new connection, with response logs.
    Record(&'a ResponseLogs),
    /// A connection that an earlier process has served with response logs.
    Resume(&'a ResponseLogs),
}

/// Called once if the connection ends without having been closed.
pub type OnExit = Box<dyn FnOnce(ExitReason) + Send>;

/// What a connection has of its device.
pub(crate) struct Setup<'a> {
    pub(crate) recovery: Recovery<'a>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) on_exit: OnExit,
}

/// A connected vif.
pub struct Connection {
    ingress: Ingress,
    egress: Egress,
    notifiers: NotifierPair<Box<dyn WaitChannel>>,
    event_set: EventSet,
    caps: Caps,
    stats: Arc<Stats>,
    /// The receive ring's event index is set, as frames waited for buffers.
    waits_for_room: bool,
    on_exit: Option<OnExit>,
    /// The device's span, for log lines from the bridge's thread.
    span: tracing::Span,
}

impl Connection {
    /// Connects to the rings and event channels of the frontend in domain `guest`. `on_exit` is called, on the
    /// bridge's thread, if the connection ends later without having been closed.
    ///
    /// # Errors
    /// [`StartError`] says what failed; everything is released again.
    pub fn connect(
        grants: &Arc<dyn GrantTable>,
        channels: &dyn WaitEventChannels,
        guest: DomId,
        negotiated: &Negotiated,
        config: &Config,
        on_exit: OnExit,
    ) -> Result<Self, StartError> {
        let setup = Setup { recovery: Recovery::None, stats: Arc::default(), on_exit };
        Self::start(grants, channels, guest, negotiated, config, setup)
    }

    /// Connects as [`Connection::connect`] does, or resumes a connection.
    pub(crate) fn start(
        grants: &Arc<dyn GrantTable>,
        channels: &dyn WaitEventChannels,
        guest: DomId,
        negotiated: &Negotiated,
        config: &Config,
        setup: Setup<'_>,
    ) -> Result<Self, StartError> {
        let Setup { recovery, stats, on_exit } = setup;
        let map = |gref| grants.map_contiguous(guest, &[gref], Access::ReadWrite).map_err(StartError::Ring);
        let bind = |port| channels.bind_interdomain(guest, port).map_err(StartError::Channel);
        let notifier = |port| bind(port).map(Notifier::new);
        let mut notifiers = match negotiated.events {
            EventPorts::Shared(port) => NotifierPair::new(notifier(port)?, None),
            EventPorts::Split { tx, rx } => NotifierPair::new(notifier(tx)?, Some(notifier(rx)?)),
        };
        notifiers.count_in(&stats.events);
        let mut tx = Tx::attach(map(negotiated.tx_ring)?, config.burst)?;
        let mut rx = Rx::attach(map(negotiated.rx_ring)?)?;
        if prepare_logs(&mut tx, &mut rx, negotiated, recovery)? {
            // The earlier process may have published responses and not notified.
            notifiers.want_tx(Notify::Yes);
            notifiers.want_rx(Notify::Yes);
        }
        let copied = config.data_path == DataPath::Copy || !matches!(recovery, Recovery::None);
        let ingress = Ingress::new(grants.clone(), guest, tx, config.burst, copied, stats.clone())?;
        let egress = match negotiated.flips {
            false => Egress::copying(grants.clone(), guest, rx, stats.clone()),
            true => {
                let donor = grants.clone().page_donor().ok_or(StartError::NoFlip)?;
                Egress::flipping(donor, guest, rx, stats.clone())?
            }
        };
        let event_set = EventSet::new()?;
        ingress.fd().map_or(Ok(()), |fd| event_set.add(fd, ANY))?;
        notifiers.register(&event_set, ANY)?;
        Ok(Self {
            ingress,
            egress,
            notifiers,
            event_set,
            caps: negotiated.caps,
            stats,
            waits_for_room: false,
            on_exit: Some(on_exit),
            span: tracing::Span::current(),
        })
    }

    /// Reports the first error to the device. The bridge detaches a port that returns an error.
    fn report<T>(&mut self, outcome: Result<T, ExitReason>) -> io::Result<T> {
        outcome.map_err(|reason| {
            let error = io::Error::new(reason.kind(), reason.to_string());
            if let Some(on_exit) = self.on_exit.take() {
                on_exit(reason);
            }
            error
        })
    }

    /// Takes the events that the bridge was woken up for. Each look costs a system call, so that the payloads' is taken
    /// where the guest has sent none: it lasts until then.
    fn take_pending(&mut self) -> Result<(), ExitReason> {
        if !self.notifiers.take_events(&self.event_set)? {
            self.ingress.take_event();
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut Batch) -> Result<(), ExitReason> {
        let before = into.len();
        self.ingress.reap();
        let outcome = self.ingress.recv(into);
        self.notifiers.worked(into.len() > before);
        outcome
    }

    #[inline]
    fn commit(&mut self) -> Result<(), ExitReason> {
        self.ingress.reap();
        if let Some(notify) = self.ingress.commit() {
            self.notifiers.want_tx(notify);
        }
        if let Some(notify) = self.egress.commit() {
            self.notifiers.want_rx(notify);
        }
        Ok(self.notifiers.flush()?)
    }

    fn transmit(&mut self, frames: Frames<'_>) -> Result<usize, ExitReason> {
        let taken = self.egress.send(frames)?;
        if taken > 0 && std::mem::take(&mut self.waits_for_room) {
            self.notifiers.worked(true);
        }
        Ok(taken)
    }

    fn arm_rings(&mut self, needs: Interest) -> Result<bool, ExitReason> {
        // Against a guest that notifies without work (XSA-332).
        if let Some(pause) = self.notifiers.limit_events(&self.event_set)? {
            self.span.in_scope(|| tracing::debug!(?pause, "masking events: the guest notifies without work"));
        }
        self.waits_for_room = needs.room;
        Ok((needs.input && self.ingress.arm()?) | (needs.room && self.egress.arm()?))
    }

    fn has(&mut self, needs: Interest) -> Result<bool, ExitReason> {
        Ok((needs.input && self.ingress.has_input()?) || (needs.room && self.egress.has_room()?))
    }
}

/// Starts or resumes the rings' response logs; `true` if an earlier process served the rings.
fn prepare_logs(
    tx: &mut Tx<Contiguous, InflightRegion>,
    rx: &mut Rx<Contiguous, InflightRegion>,
    negotiated: &Negotiated,
    recovery: Recovery<'_>,
) -> Result<bool, StartError> {
    let tx = tx.logged();
    let rx = rx.logged();
    let bytes = [tx.log_bytes(), rx.log_bytes()];
    match recovery {
        Recovery::None => Ok(false),
        Recovery::Record(response_logs) => {
            let [tx_log, rx_log] = response_logs.create(negotiated, bytes)?;
            tx.record(tx_log).map_err(ResumeError::from)?;
            rx.record(rx_log).map_err(ResumeError::from)?;
            Ok(false)
        }
        Recovery::Resume(response_logs) => {
            let logs = response_logs.open(negotiated, bytes)?;
            let [tx_log, rx_log] = logs.ok_or(StartError::NotLogged)?;
            tx.resume(tx_log)?;
            rx.resume(rx_log)?;
            Ok(true)
        }
    }
}

impl Port for Connection {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> &Arc<bridge::Stats> {
        &self.stats.port
    }

    fn recv(&mut self, into: &mut Batch) -> io::Result<()> {
        let outcome = self.receive(into);
        self.report(outcome)
    }

    /// A fault of the guest's is found again by the next call, which reports it.
    fn lend(&mut self, head_len: usize, into: &mut Iovecs) -> bool {
        self.egress.lend(head_len, into)
    }

    fn keep_lent(&mut self, pieces: usize) -> Option<Pin> {
        self.egress.keep_lent(pieces)
    }

    fn send(&mut self, frames: Frames<'_>) -> io::Result<usize> {
        let outcome = self.transmit(frames);
        self.report(outcome)
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.commit();
        self.report(outcome)
    }

    fn arm(&mut self, needs: Interest) -> io::Result<bool> {
        let outcome = self.arm_rings(needs);
        self.report(outcome)
    }

    fn is_ready(&mut self, needs: Interest) -> io::Result<bool> {
        let outcome = self.has(needs);
        self.report(outcome)
    }

    fn take_events(&mut self) -> io::Result<()> {
        let outcome = self.take_pending();
        self.report(outcome)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event_set.as_fd()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("caps", &self.caps).finish_non_exhaustive()
    }
}
