//! What a broker keeps for a successor, and how it goes on with the members of a predecessor that was killed.
//!
//! It waits for them for a bounded time, and not for those whose process is gone.

use super::{Loop, PROCESS};
use crate::Result;
use crate::local::broker_config::BrokerConfig;
use crate::local::peer_process;
use crate::local::registry::{Registry, Rules};
use crate::local::state_file::{self, Kept, StateFile};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use ring_abi::DomId;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long members of a predecessor may take to come back.
const GRACE: Duration = Duration::from_secs(5);

/// What a broker starts with.
pub(super) enum Start {
    /// Its members end with it: it keeps nothing.
    Alone,
    /// It is to be succeeded.
    First,
    /// It goes on with what a predecessor has kept, and is to be succeeded.
    Successor(Kept),
}

impl Start {
    /// Reads what a predecessor has kept, if this broker may take over. A file that cannot be used is as good as none.
    pub(super) fn find(config: &mut BrokerConfig) -> Self {
        let Some(may_take_over) = config.succession.take() else {
            state_file::remove_from(&config.dir);
            return Self::Alone;
        };
        let kept = StateFile::read(&config.dir).unwrap_or_else(|error| {
            tracing::error!(%error, "the domains of a hypervisor that was killed are lost");
            None
        });
        kept.filter(|_| may_take_over()).map_or(Self::First, Self::Successor)
    }

    /// Makes the broker's state, and the file in which it is kept.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where the file cannot be written.
    pub(super) fn registry(self, rules: Rules, dir: &Path) -> Result<(Registry, Option<StateFile>)> {
        let mut registry = match self {
            Self::Alone => return Ok((Registry::new(rules), None)),
            Self::First => Registry::new(rules),
            Self::Successor(kept) => Registry::take_over(rules, kept),
        };
        registry.give_tokens();
        let file = StateFile::create(dir, &registry.kept())?;
        Ok((registry, Some(file)))
    }
}

/// The predecessor's members are waited for.
pub(super) struct Recovery {
    started: Instant,
    /// The processes of those that have not come back, where they are known.
    processes: HashMap<DomId, OwnedFd>,
}

impl Loop {
    /// Watches the processes of the predecessor's members.
    pub(super) fn begin_recovery(&mut self) {
        if !self.registry.has_inherited() {
            return;
        }
        let mut processes = HashMap::new();
        for (domid, member) in self.registry.awaited() {
            match peer_process::open(member.pid) {
                Ok(process) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, PROCESS | u64::from(domid.0));
                    // Where it cannot be watched, the time passes.
                    let _ = self.epoll.add(&process, event);
                    processes.insert(domid, process);
                }
                Err(Errno::ESRCH) => {
                    self.registry.give_up(domid);
                }
                // Of another process namespace.
                Err(_) => {}
            }
        }
        self.recovery = Some(Recovery { started: Instant::now(), processes });
    }

    /// The process of one of the predecessor's members has exited.
    pub(super) fn process_exited(&mut self, event: u64) {
        let domid = DomId(event as u16);
        if let Some(process) = self.recovery.as_mut().and_then(|r| r.processes.remove(&domid)) {
            let _ = self.epoll.delete(&process);
        }
        // One that has come back is noticed by its session.
        if self.registry.give_up(domid) {
            tracing::info!(%domid, "the domain's process has exited while there was no broker");
        }
    }

    /// Ends the recovery once all members have come back, or time is up.
    pub(super) fn advance_recovery(&mut self) {
        let Some(recovery) = &self.recovery else { return };
        if self.registry.is_recovering() && recovery.started.elapsed() < GRACE {
            return;
        }
        for (domid, _) in self.registry.awaited() {
            tracing::warn!(%domid, "the domain's process has not come back in time");
        }
        let late = self.registry.give_up_all();
        self.recovery = None;
        late.into_iter().for_each(|effect| self.apply(0, effect));
        let (domains, effects) = self.registry.finish_recovery();
        tracing::info!(domains, "took over from a hypervisor that was killed");
        effects.into_iter().for_each(|effect| self.apply(0, effect));
        self.release(|_| true);
        self.keep_changes();
        self.close_discarded();
    }

    /// When [`Loop::advance_recovery`] is to be called at the latest.
    pub(super) fn recovery_timeout(&self) -> EpollTimeout {
        let left = |recovery: &Recovery| GRACE.saturating_sub(recovery.started.elapsed());
        let left = self.recovery.as_ref().map(|recovery| left(recovery).as_millis() as u16 + 1);
        left.map_or(EpollTimeout::NONE, EpollTimeout::from)
    }

    /// Keeps what has changed for a successor.
    pub(super) fn keep_changes(&mut self) {
        let changed = self.registry.take_changed();
        let Some(state) = &self.state else { return };
        let last = self.registry.last();
        let kept = changed.iter().try_for_each(|(domid, domain)| state.write(last, *domid, domain.as_ref()));
        if let Err(error) = kept {
            tracing::error!(%error, "failed to keep the domains: they are lost if the hypervisor is killed");
            state.remove();
            self.state = None;
        }
    }
}
