//! The look at all ports though nobody told of any: nothing depends on it, and what it finds is an error and counted.

use std::time::Duration;

use event_loop::Interest;

use super::Worker;
use crate::{DropReason, fdb::PortId};

/// Seconds between removals of expired entries from the forwarding database.
const SWEEP_S: u32 = 16;
/// How long an event may be on its way: work found at a tick without an event by then was missed. A guest may lose its processor
/// between publishing and notifying, for several of Xen's time slices of 30 ms.
const EVENT_DELAY: Duration = Duration::from_millis(500);
/// Where this worker comes so much too late to look again, the whole machine may have stood still: the guest had no time.
const STALLED: Duration = Duration::from_millis(100);

impl Worker {
    /// A safety net: looks at every port at a tick. No port depends on it for frames.
    pub(super) fn look_at_all(&mut self) {
        match self.check_at {
            Some(check_at) if self.now >= check_at + STALLED => self.check_at = Some(self.now + EVENT_DELAY),
            Some(check_at) if self.now >= check_at => self.check_suspects(),
            _ => {}
        }
        if !self.tick.is_due(self.now) {
            return;
        }
        if self.now_s() - self.swept_s >= SWEEP_S {
            self.swept_s = self.now_s();
            self.switch.sweep(self.now_s());
        }
        self.stale_caps = true;
        for (index, attached) in self.ports.iter_mut().enumerate() {
            let Some(attached) = attached else { continue };
            if attached.due().is_none() {
                attached.stats.lost(DropReason::NoRoom, attached.queue.expire(self.now));
            }
            if !attached.queue.is_empty() {
                self.tick.worked(self.now);
            }
            match attached.is_ready() {
                Ok(true) => {
                    attached.is_suspect = true;
                    self.check_at = Some(self.now + EVENT_DELAY);
                }
                Ok(false) => attached.wake(self.now),
                Err(error) => self.failed.push((PortId(index as u16), error)),
            }
        }
        self.remove_failed();
    }

    /// Counts the ports that had work at the tick, and were not told of it since.
    fn check_suspects(&mut self) {
        self.check_at = None;
        for attached in self.ports.iter_mut().flatten() {
            if attached.is_suspect && !attached.state.is_polled() {
                // One line, as the port's peer may never send an event.
                if attached.stats.missed_wakeup() {
                    let Interest { input, room } = attached.state.needs();
                    tracing::warn!(
                        bridge = self.name,
                        port = attached.name,
                        input,
                        room,
                        "missed a wake-up: the tick found work"
                    );
                }
                attached.wake(self.now);
            }
        }
    }
}
