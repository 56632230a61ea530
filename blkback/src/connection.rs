// Not a core: does I/O or calls a hypervisor.

//! A device's connection: the threads of all its rings, which start together and end together.
//!
//! All rings are mapped, and all threads can serve, before the first request is taken: a connection that cannot be made has
//! no effect. When one thread exits, the control thread stops the others, and the connection has ended once all have.

use std::sync::Arc;

use event_channel::WaitEventChannels;
use grant_table::{GrantTable, PageBudget};
use ring_abi::DomId;

use crate::config::{Recovery, RingConfig, Tuning};
use crate::disk_watch::DiskWatch;
use crate::engine::{Disk, DiskInfo};
use crate::error::{ExitReason, StartError};
use crate::handshake::Negotiated;
use crate::medium::Media;
use crate::ring_thread::{Attached, RingThread};
use crate::stats::Stats;
use crate::throttle::Throttle;

/// What all rings of a connection have in common.
pub(crate) struct ConnectionConfig {
    /// This domain's grant table.
    pub(crate) grants: Arc<dyn GrantTable>,
    /// This domain's event channels.
    pub(crate) channels: Arc<dyn WaitEventChannels>,
    /// The frontend's domain.
    pub(crate) peer: DomId,
    /// The frontend's rings.
    pub(crate) negotiated: Negotiated,
    /// The disk to serve.
    pub(crate) disk: Arc<dyn Disk>,
    /// The disk's properties that the frontend was told.
    pub(crate) info: DiskInfo,
    /// The threads' parameters.
    pub(crate) tuning: Tuning,
    /// The pages that may stay mapped, with other devices'.
    pub(crate) page_budget: PageBudget,
    /// The media of the driver's disks.
    pub(crate) media: Media,
    /// The disk's properties as the threads find them.
    pub(crate) watch: Arc<DiskWatch>,
    /// The disk's limits, if it has any.
    pub(crate) throttle: Option<Arc<Throttle>>,
    /// Called when a thread has exited, all that it had being dropped.
    pub(crate) on_exit: Arc<dyn Fn() + Send + Sync>,
}

/// What one ring has of its own.
pub(crate) struct QueueConfig {
    /// Whether its requests in flight are recorded for a successor of this process.
    pub(crate) recovery: Recovery,
    /// Its counters.
    pub(crate) stats: Arc<Stats>,
}

/// Calls a function when the last owner of this is dropped.
struct LastExit(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for LastExit {
    fn drop(&mut self) {
        if let Some(on_last_exit) = self.0.take() {
            on_last_exit();
        }
    }
}

impl ConnectionConfig {
    /// What the thread of a ring is given.
    fn ring(&self, queue: QueueConfig, last_exit: &Arc<LastExit>) -> RingConfig {
        let last_exit = last_exit.clone();
        let on_exit = self.on_exit.clone();
        RingConfig {
            grants: self.grants.clone(),
            peer: self.peer,
            abi: self.negotiated.abi,
            persistent: self.negotiated.persistent,
            indirect_segments: self.negotiated.indirect_segments,
            disk: self.disk.clone(),
            info: self.info,
            recovery: queue.recovery,
            stats: queue.stats,
            tuning: self.tuning,
            page_budget: self.page_budget.clone(),
            gate: self.media.gate(self.peer, self.disk.medium()),
            watch: self.watch.clone(),
            throttle: self.throttle.clone(),
            on_exit: Box::new(move || {
                drop(last_exit);
                on_exit();
            }),
        }
    }
}

/// Connected rings, each with its thread.
#[derive(Debug)]
pub(crate) struct Connection {
    negotiated: Negotiated,
    rings: Vec<RingThread>,
}

impl Connection {
    /// Maps the rings, binds their channels and starts their threads, which log within the caller's `tracing` span. `queues` has
    /// one entry for each of the frontend's queues; `on_last_exit` is called once nothing of the connection is in use any more.
    ///
    /// # Errors
    /// [`StartError`] says what failed; everything is released again.
    pub(crate) fn start(
        config: &ConnectionConfig,
        queues: Vec<QueueConfig>,
        on_last_exit: Box<dyn FnOnce() + Send + Sync>,
    ) -> Result<Connection, StartError> {
        let last_exit = Arc::new(LastExit(Some(on_last_exit)));
        let offered = &config.negotiated.queues;
        let attached = Attached::all(&*config.grants, &*config.channels, config.peer, offered)?;
        let mut rings = Vec::with_capacity(offered.len());
        for (number, (attached, queue)) in attached.into_iter().zip(queues).enumerate() {
            let _span = (offered.len() > 1).then(|| tracing::error_span!("queue", number).entered());
            match RingThread::start(config.ring(queue, &last_exit), attached) {
                Ok(ring) => rings.push(ring),
                Err(error) => {
                    rings.into_iter().for_each(RingThread::abandon);
                    return Err(error);
                }
            }
        }
        rings.iter().for_each(RingThread::serve);
        Ok(Connection { negotiated: config.negotiated.clone(), rings })
    }

    /// The rings that the threads serve.
    pub(crate) fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Tells the threads to complete the requests in flight and exit; does not wait for them.
    pub(crate) fn stop(&self) {
        self.rings.iter().for_each(RingThread::stop);
    }

    /// Tells a thread to read the disk's size again.
    pub(crate) fn look(&self) {
        if let Some(ring) = self.rings.first() {
            ring.look();
        }
    }

    /// Tells the threads that these properties of the disk are advertised.
    pub(crate) fn advertised(&self, info: DiskInfo) {
        self.rings.iter().for_each(|ring| ring.advertised(info));
    }

    /// Tells the threads that these limits of the disk hold from now on.
    pub(crate) fn set_throttle(&self, throttle: Option<&Arc<Throttle>>) {
        self.rings.iter().for_each(|ring| ring.set_throttle(throttle.cloned()));
    }

    /// Whether a thread has exited, so that the others are to be stopped.
    pub(crate) fn is_ending(&self) -> bool {
        self.rings.iter().any(RingThread::has_exited)
    }

    /// Whether all threads have exited, and nothing of the rings is in use any more.
    pub(crate) fn has_exited(&self) -> bool {
        self.rings.iter().all(RingThread::has_exited)
    }

    /// Waits for the threads to exit.
    ///
    /// # Errors
    /// The first [`ExitReason`] of a thread that exited without being told to, or failed while stopping: one that says more
    /// than that the frontend is gone, if there is one.
    pub(crate) fn join(self) -> Result<(), ExitReason> {
        let outcomes: Vec<_> = self.rings.into_iter().filter_map(|ring| ring.join().err()).collect();
        let (gone, others): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|reason| matches!(reason, ExitReason::PeerGone));
        others.into_iter().chain(gone).next().map_or(Ok(()), Err)
    }
}
