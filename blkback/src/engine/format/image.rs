// Not a core: does I/O or calls a hypervisor.

//! What the threads of an image's rings and the image's own thread have in common.

use super::grace::Grace;
use super::image_file::ImageFile;
use super::layer::Layer;
use super::place::Chunk;
use super::progress::Progress;
use crate::engine::IoRequest;
use crate::engine::base_cache::DiskCache;
use crate::engine::done::{Done, lock};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

/// An image that is served.
#[derive(Debug)]
pub(super) struct Image {
    /// A unit of places has 2 to the power of this bytes.
    pub(super) unit_bits: u32,
    /// Bytes of the disk.
    pub(super) size: AtomicU64,
    pub(super) grace: Arc<Grace>,
    /// What is cached of the files below the one that is written.
    pub(super) cache: DiskCache,
    /// The files, from the lowest image's to the one that is written.
    files: Mutex<Vec<Arc<ImageFile>>>,
    rings: Mutex<Vec<Weak<Ring>>>,
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

impl Asked {
    fn take(&mut self, batch: &mut Vec<Ask>, most: usize) {
        let count = self.waiting.len().min(most);
        batch.extend(self.waiting.drain(..count));
    }
}

/// What the image's thread is asked.
pub(super) enum Ask {
    /// To carry out an operation, or to say where its bytes are.
    Run(Run),
    /// To do something with the image, and to tell how it went.
    Job(Job, Reply),
}

/// What is done with an image while it is served.
pub(super) enum Job {
    /// To make the disk so many bytes long.
    Resize(u64),
    /// To write to this image from now on, which is empty.
    Snapshot(Box<Layer>),
    /// To use this open file for the image with so many above it, which is the same image.
    Replace(usize, Box<Layer>),
    /// To do something in slices, between the guest's operations.
    Walk(Task, Arc<Progress>),
}

/// What is done in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// To copy into the guest's own image what the images below have, which are left then.
    Stream,
    /// To move what the guest's own image has into the one below, which is open for writing.
    Commit,
}

/// Who waits for a job.
pub(super) type Reply = SyncSender<io::Result<()>>;

/// What is done in slices.
pub(super) struct Running {
    pub(super) task: Task,
    /// The byte of the disk where the next slice begins.
    pub(super) at: u64,
    pub(super) progress: Arc<Progress>,
    pub(super) reply: Reply,
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
    pub(super) ring: Arc<Ring>,
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

/// A ring, as the image's thread knows it.
pub(super) struct Ring {
    pub(super) answers: Answers,
    /// Files are not the image's any more, and [`Answer::Files`] says so.
    pub(super) changed: AtomicBool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("changed", &self.changed).finish_non_exhaustive()
    }
}

/// Chunks of places by their numbers.
pub(super) type Chunks = SmallVec<[(u64, Arc<Chunk>); 2]>;

/// What the image's thread answers.
pub(super) enum Answer {
    /// The operation was carried out.
    Done(IoRequest, io::Result<()>),
    /// Its bytes are where these chunks say.
    Known(IoRequest, Chunks),
    /// Nothing was asked: files are not the image's any more.
    Files,
}

/// The answers for one ring's thread.
pub(super) type Answers = Done<Answer>;

impl Image {
    pub(super) fn new(unit_bits: u32, size: u64, files: Vec<Arc<ImageFile>>, cache: DiskCache) -> Image {
        Image {
            unit_bits,
            size: AtomicU64::new(size),
            grace: Arc::default(),
            cache,
            files: Mutex::new(files),
            rings: Mutex::default(),
            asked: Mutex::default(),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// The file with a number.
    pub(super) fn file(&self, number: u8) -> Option<Arc<ImageFile>> {
        lock(&self.files).iter().find(|file| file.number() == number).cloned()
    }

    /// The file that is written.
    pub(super) fn written(&self) -> Option<Arc<ImageFile>> {
        lock(&self.files).last().cloned()
    }

    /// The files, from the one that is written to the lowest image's.
    pub(super) fn files(&self) -> Vec<Arc<ImageFile>> {
        lock(&self.files).iter().rev().cloned().collect()
    }

    /// The lowest number that no file has.
    pub(super) fn free_number(&self) -> u8 {
        let files = lock(&self.files);
        let is_free = |number: &u8| files.iter().all(|file| file.number() != *number);
        (0..u8::MAX).find(is_free).unwrap_or(u8::MAX)
    }

    /// Has these files, from the one that is written to the lowest image's, instead of those so far, of which nobody uses a place. Rings close
    /// what is left out.
    pub(super) fn set_files(&self, files: impl Iterator<Item = Arc<ImageFile>>) {
        let mut files: Vec<_> = files.collect();
        files.reverse();
        let before = std::mem::replace(&mut *lock(&self.files), files);
        drop(before);
        let mut rings = lock(&self.rings);
        rings.retain(|ring| ring.strong_count() > 0);
        for ring in rings.iter().filter_map(Weak::upgrade) {
            ring.changed.store(true, Ordering::SeqCst);
            ring.answers.push(Answer::Files);
        }
    }

    /// Enters a ring.
    ///
    /// # Errors
    /// There is no descriptor left for it.
    pub(super) fn ring(&self, depth: usize) -> io::Result<Arc<Ring>> {
        let ring = Arc::new(Ring { answers: Answers::new(depth)?, changed: AtomicBool::new(false) });
        lock(&self.rings).push(Arc::downgrade(&ring));
        Ok(ring)
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

    /// Says that the image's thread has ended; drops what it was asked, and closes the images, whoever else knows of this one.
    pub(super) fn end(&self) {
        let files = std::mem::take(&mut *lock(&self.files));
        drop(files);
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
        asked.take(batch, most);
        true
    }

    /// Moves what there is to do to `batch`, of so many at most; `false` if no more will come.
    pub(super) fn next_if_any(&self, batch: &mut Vec<Ask>, most: usize) -> bool {
        let mut asked = lock(&self.asked);
        asked.take(batch, most);
        !batch.is_empty() || !asked.closed
    }
}
