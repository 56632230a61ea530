// Not a core: does I/O or calls a hypervisor.

//! What the threads of an image's rings and the image's own thread have in common.

use super::grace::Grace;
use super::image_file::ImageFile;
use super::layer::Layer;
use super::place::Chunk;
use crate::engine::IoRequest;
use crate::engine::done::{Done, lock};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// An image that is served.
#[derive(Debug)]
pub(super) struct Image {
    /// A unit of places has 2 to the power of this bytes.
    pub(super) unit_bits: u32,
    /// Bytes of the disk.
    pub(super) size: AtomicU64,
    pub(super) grace: Arc<Grace>,
    /// The files by their numbers; the last is the one that is written.
    files: Mutex<Vec<Arc<ImageFile>>>,
    asked: Mutex<Asked>,
    changed: Condvar,
    /// Nobody answers any more.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Asked {
    waiting: VecDeque<Ask>,
    closed: bool,
}

/// What the image's thread is asked.
pub(super) enum Ask {
    /// To carry out an operation, or to say where its bytes are.
    Run(Run),
    /// To do something with the image, and to tell how it went.
    Job(Job, SyncSender<io::Result<()>>),
}

/// What is done with an image while it is served.
pub(super) enum Job {
    /// To make the disk so many bytes long.
    Resize(u64),
    /// To write to this image from now on, which is empty.
    Snapshot(Box<Layer>),
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ask::Run(_) => "Run",
            Ask::Job(..) => "Job",
        })
    }
}

/// An operation for the image's thread.
pub(super) struct Run {
    pub(super) request: IoRequest,
    pub(super) how: How,
    pub(super) answers: Arc<Answers>,
}

/// How an operation is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By the ring, if its places can be told.
    ByRing,
    /// By the image's thread, as it is in more places than a ring sees to at once.
    InManyPlaces,
    /// By the image's thread: it is a write of nothing but zeroes.
    AsHole,
}

/// Chunks of places by their numbers.
pub(super) type Chunks = SmallVec<[(u64, Arc<Chunk>); 2]>;

/// What the image's thread answers.
pub(super) enum Answer {
    /// The operation was carried out.
    Done(IoRequest, io::Result<()>),
    /// Its bytes are where these chunks say.
    Known(IoRequest, Chunks),
}

/// The answers for one ring's thread.
pub(super) type Answers = Done<Answer>;

impl Image {
    pub(super) fn new(unit_bits: u32, size: u64, files: Vec<Arc<ImageFile>>) -> Image {
        Image {
            unit_bits,
            size: AtomicU64::new(size),
            grace: Arc::default(),
            files: Mutex::new(files),
            asked: Mutex::default(),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// The file with a number.
    pub(super) fn file(&self, number: u8) -> Option<Arc<ImageFile>> {
        lock(&self.files).get(usize::from(number)).cloned()
    }

    /// The file that is written.
    pub(super) fn written(&self) -> Option<Arc<ImageFile>> {
        lock(&self.files).last().cloned()
    }

    /// How many files there are.
    pub(super) fn files(&self) -> usize {
        lock(&self.files).len()
    }

    /// Adds the file that is written from now on.
    pub(super) fn add_file(&self, file: Arc<ImageFile>) {
        lock(&self.files).push(file);
    }

    /// Asks the image's thread; `false` if it has ended.
    pub(super) fn ask(&self, ask: Ask) -> bool {
        let mut asked = lock(&self.asked);
        if self.has_ended() || asked.closed {
            return false;
        }
        asked.waiting.push_back(ask);
        self.changed.notify_one();
        true
    }

    /// Has the image's thread end once it has done what it was asked.
    pub(super) fn close(&self) {
        lock(&self.asked).closed = true;
        self.changed.notify_one();
    }

    /// Whether the image's thread has ended, and answers nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Says that the image's thread has ended; drops what it was asked.
    pub(super) fn end(&self) {
        let mut asked = lock(&self.asked);
        self.ended.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut asked.waiting);
        drop(asked);
        drop(waiting);
    }

    /// Waits for something to do, and moves it to `batch`, of so many at most; `false` if no more will come.
    pub(super) fn next(&self, batch: &mut Vec<Ask>, most: usize) -> bool {
        let mut asked = lock(&self.asked);
        while asked.waiting.is_empty() {
            if asked.closed {
                return false;
            }
            asked = self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
        let count = asked.waiting.len().min(most);
        batch.extend(asked.waiting.drain(..count));
        true
    }
}
