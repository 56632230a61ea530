// Not a core: does I/O or calls a hypervisor.

//! The end of a disk's files, which may come later than that of the disk.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Tells when a disk's files are closed. It keeps neither the disk nor the files.
#[derive(Clone, Debug)]
pub struct Closing(Weak<()>);

impl Closing {
    /// Whether they are: the disk was dropped, and others can use the files.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// What a disk has as long as its files are open.
#[derive(Debug, Default)]
pub(super) struct Open(Arc<()>);

impl Open {
    pub(super) fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.0))
    }

    /// Has a thread close the files, and waits for it for so long: a file server that does not answer may keep it for longer.
    pub(super) fn close_by_a_thread(
        &mut self,
        path: &Path,
        wait: Duration,
        close: impl FnOnce() + Send + 'static,
    ) {
        let open = std::mem::take(self);
        let (closed, closing) = mpsc::channel();
        let close = move || {
            close();
            drop(open);
            let _ = closed.send(());
        };
        if std::thread::Builder::new().name("close".into()).spawn(close).is_ok()
            && closing.recv_timeout(wait) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!(path = %path.display(), "closing takes long");
        }
    }
}
