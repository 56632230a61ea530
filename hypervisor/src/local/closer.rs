//! Closes descriptors that a client has sent on threads of their own: closing may take as long as the client likes, for a socket
//! that lingers, or as freeing a large arena takes.

use ring_abi::DomId;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Descriptors of one domain that are being closed, at which it is served no more until some are closed.
const MOST: usize = 64;

/// Whose descriptors are closed: a domain's, or those of clients that have not joined as one.
pub(super) type Whose = Option<DomId>;

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
        let counted: Vec<_> = descriptors.into_iter().map(|fd| Closing::new(fd, &count)).collect();
        // Without a thread they are closed here, with the closure.
        let close = move || drop(counted);
        if let Err(error) = std::thread::Builder::new().name("xpv-close".into()).spawn(close) {
            tracing::error!(%error, "failed to start a thread that closes descriptors");
        }
    }

    /// Whether so many descriptors of a domain are being closed that it is to be refused. Clients that have not joined are not
    /// told from each other, and the kernel passes none of theirs if it is recent enough.
    pub(super) fn is_busy(&self, whose: Whose) -> bool {
        let count = whose.and_then(|_| self.closing.get(&whose));
        count.is_some_and(|count| count.load(Ordering::Relaxed) >= MOST)
    }
}

/// A descriptor that counts until it is closed.
struct Closing {
    descriptor: Option<OwnedFd>,
    count: Arc<AtomicUsize>,
}

impl Closing {
    fn new(descriptor: OwnedFd, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { descriptor: Some(descriptor), count: count.clone() }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        drop(self.descriptor.take());
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};

    #[test]
    fn descriptors_are_closed_and_no_more_counted() {
        let mut closer = Closer::default();
        let (mut reader, writer) = pipe().unwrap();
        let all = (0..MOST).map(|_| OwnedFd::from(writer.try_clone().unwrap())).collect();
        drop(writer);
        closer.close(Some(DomId(1)), all);
        // It ends once all are closed.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        while closer.is_busy(Some(DomId(1))) {
            std::thread::yield_now();
        }
        closer.close(None, vec![reader.into()]);
        assert!(!closer.is_busy(None));
    }
}
