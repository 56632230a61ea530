//! Waits for images to be opened by threads of their own: an open may take as long as a file server or the holder of a lease likes, and
//! must keep no other device waiting.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use blkback::engine::{OpenError, Spec};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use tracing::Span;
use xenbus::Device;

use crate::opener::{Opened, Opener, Refusal};

/// How long an image is waited for when its opening begins: nearly all are open by then.
const BEGIN: Duration = Duration::from_millis(50);
/// How long an open image is kept for its device; the device asks at least once a second.
const KEEP: Duration = Duration::from_secs(5);

/// The images that are being opened.
pub(super) struct Openings {
    opener: Opener,
    begun: HashMap<Device, Opening>,
}

struct Opening {
    spec: Spec,
    opened: Receiver<Result<Opened, Refusal>>,
    /// Of what the thread has while it runs.
    thread: Weak<()>,
}

impl Openings {
    pub(super) fn new(opener: Opener) -> Openings {
        Openings { opener, begun: HashMap::new() }
    }

    /// Opens the image of a device, or goes on with that; `None` while it takes longer. What no device asks for any more is closed
    /// again.
    pub(super) fn open(&mut self, device: &Device, spec: &Spec) -> Option<Result<Opened, Refusal>> {
        self.begun.retain(|_, opening| opening.thread.strong_count() > 0);
        let (opening, patience) = match self.begun.remove(device) {
            Some(begun) if begun.spec == *spec => (begun, Duration::ZERO),
            _ => match Opening::start(&self.opener, spec) {
                Ok(opening) => (opening, BEGIN),
                Err(source) => {
                    let failure = OpenError::Io { path: "a thread".into(), source }.into();
                    return Some(Err(Refusal::failed(failure)));
                }
            },
        };
        let outcome = opening.opened.recv_timeout(patience);
        if matches!(outcome, Err(RecvTimeoutError::Timeout)) {
            self.begun.insert(device.clone(), opening);
        }
        // Disconnected: it was open, but nobody asked for it in time.
        outcome.ok()
    }
}

impl Opening {
    fn start(opener: &Opener, spec: &Spec) -> io::Result<Opening> {
        // Without a buffer: what nobody takes is dropped by the thread.
        let (hand_over, opened) = bounded(0);
        let runs = Arc::new(());
        let thread = Arc::downgrade(&runs);
        let opener = opener.clone();
        let to_open = spec.clone();
        let span = Span::current();
        std::thread::Builder::new().name("open".into()).spawn(move || {
            let _span = span.entered();
            let _ = hand_over.send_timeout(opener.open(&to_open), KEEP);
            drop(runs);
        })?;
        Ok(Opening { spec: spec.clone(), opened, thread })
    }
}
