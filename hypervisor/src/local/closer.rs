//! Closes descriptors that a client has sent on threads of their own: closing may take as long as the client likes, for a socket
//! that lingers, or as freeing a large arena takes.

use super::registry::Whose;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Descriptors of one domain that are being closed, at which it is served no more until some are closed.
const MOST: usize = 64;

/// What is being closed.
#[derive(Debug, Default)]
pub(super) struct Closer {
    closing: HashMap<Whose, Arc<AtomicUsize>>,
}

impl Closer {
    /// Closes descriptors, which may block, without waiting for it.
    pub(super) fn close(&mut self, whose: Whose, descriptors: Vec<OwnedFd>) {
        if descriptors.is_empty() {
            return;
        }
        self.closing.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        let count = self.closing.entry(whose).or_default().clone();
        count.fetch_add(descriptors.len(), Ordering::Relaxed);
        let close = move || {
            for descriptor in descriptors {
                drop(descriptor);
                count.fetch_sub(1, Ordering::Relaxed);
            }
        };
        // Without a thread they are closed here: the closure is dropped with them, and counts as closing for good.
        if let Err(error) = std::thread::Builder::new().name("xpv-close".into()).spawn(close) {
            tracing::error!(%error, "failed to start a thread that closes descriptors");
        }
    }

    /// Whether so many descriptors of a client are being closed that it is to be refused.
    pub(super) fn is_busy(&self, whose: Whose) -> bool {
        self.closing.get(&whose).is_some_and(|count| count.load(Ordering::Relaxed) >= MOST)
    }
}
