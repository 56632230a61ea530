//! Opens images by threads of their own: an open may take as long as a file server or the holder of a lease likes, and must keep no other
//! device waiting.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use blkback::Disk;
use blkback::engine::{OpenError, Spec, open, spec::Source};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use tracing::Span;
use xenbus::Device;

/// How long an image is waited for when its opening begins: nearly all are open by then.
const BEGIN: Duration = Duration::from_millis(10);
/// How long an open image is kept for its device; the device asks at least once a second.
const KEEP: Duration = Duration::from_secs(5);

/// An open image; of a file its device and inode numbers.
pub(super) type Opened = (Arc<dyn Disk>, Option<(u64, u64)>);

/// The images that are being opened.
#[derive(Default)]
pub(super) struct Openings(HashMap<Device, Opening>);

struct Opening {
    spec: Spec,
    opened: Receiver<Result<Opened, OpenError>>,
    /// Of what the thread has while it runs.
    thread: Weak<()>,
}

impl Openings {
    /// Opens the image of a device, or goes on with that; `None` while it takes longer. What no device asks for any more is closed
    /// again.
    pub(super) fn open(&mut self, device: &Device, spec: &Spec) -> Option<Result<Opened, OpenError>> {
        self.0.retain(|_, opening| opening.thread.strong_count() > 0);
        let (opening, patience) = match self.0.remove(device) {
            Some(begun) if begun.spec == *spec => (begun, Duration::ZERO),
            _ => match Opening::start(spec) {
                Ok(opening) => (opening, BEGIN),
                Err(source) => return Some(Err(OpenError::Io { path: "a thread".into(), source })),
            },
        };
        let outcome = opening.opened.recv_timeout(patience);
        if matches!(outcome, Err(RecvTimeoutError::Timeout)) {
            self.0.insert(device.clone(), opening);
        }
        // Disconnected: it was open, but nobody asked for it in time.
        outcome.ok()
    }
}

impl Opening {
    fn start(spec: &Spec) -> io::Result<Opening> {
        // Without a buffer: what nobody takes is dropped by the thread.
        let (hand_over, opened) = bounded(0);
        let runs = Arc::new(());
        let thread = Arc::downgrade(&runs);
        let (to_open, span) = (spec.clone(), Span::current());
        std::thread::Builder::new().name("open".into()).spawn(move || {
            let _span = span.entered();
            let opened = open(&to_open).map(|disk| (disk, file_id_of(&to_open)));
            let _ = hand_over.send_timeout(opened, KEEP);
            drop(runs);
        })?;
        Ok(Opening { spec: spec.clone(), opened, thread })
    }
}

/// The device and inode numbers of an image's file.
fn file_id_of(spec: &Spec) -> Option<(u64, u64)> {
    match &spec.source {
        Source::Raw(path) => std::fs::metadata(path).ok().as_ref().map(file_id),
        _ => None,
    }
}

/// The device and inode numbers of a file.
pub(super) fn file_id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
