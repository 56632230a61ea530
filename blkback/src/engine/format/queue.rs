// Not a core: does I/O or calls a hypervisor.

//! The engine of one ring on an image: an operation whose places are known is carried out in parts, one for each place, by an engine of
//! the place's file; another one goes to the image's thread.
#![allow(unsafe_code)] // A part's token points into its operation's memory.

use super::grace::User;
use super::image::{Answer, Ask, How, Image, Ring, Run};
use super::image_file::ImageFile;
use super::place::{CHUNK_UNITS, Chunk, MAX_FILES, Place};
use crate::engine::base_cache::CachedEngine;
use crate::engine::zeroes::is_hole;
use crate::engine::{
    BouncePool, Completion, DiscardLimits, Engine, IoRequest, IoTable, Operation, Tag, file,
};
use event_loop::EventSet;
use nix::errno::Errno;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Parts of an operation, at most: one with more goes to the image's thread.
const MAX_PARTS: usize = 32;
/// Chunks of places that a ring knows.
const CHUNKS: usize = 1024;

/// An operation that is carried out in parts.
struct Whole {
    request: IoRequest,
    /// Parts that are not complete.
    left: usize,
    result: io::Result<()>,
    /// Of [`User::enter`].
    turn: usize,
}

/// A part: bytes of the operation, in a file at an offset.
#[derive(Clone, Debug)]
struct Part {
    bytes: Range<usize>,
    file: u8,
    offset: u64,
}

/// A chunk of places, with its number.
type Known = Option<(u64, Arc<Chunk>)>;

/// An engine of one file, with the operations that it has.
struct OfFile {
    of: Weak<ImageFile>,
    engine: Box<dyn Engine>,
    out: usize,
}

/// The engine.
pub(super) struct Queue {
    // Dropped first: it waits for the parts.
    files: Vec<Option<OfFile>>,
    parts: IoTable<()>,
    /// By a part's tag, its operation's.
    whole_of: Box<[u32]>,
    free: Vec<u32>,
    wholes: Vec<Option<Whole>>,
    chunks: Box<[Known]>,
    /// Those for which there were no parts left.
    waiting: VecDeque<IoRequest>,
    done: Vec<Completion>,
    ring: Arc<Ring>,
    /// Operations that the image's thread has.
    asked: usize,
    taken: Vec<Answer>,
    completions: Vec<Completion>,
    batch: Vec<IoRequest>,
    user: User,
    image: Arc<Image>,
    zeroes: Option<DiscardLimits>,
    events: EventSet,
}

impl Queue {
    /// With `zeroes`, writes of zeroes that have such an extent in them become holes.
    ///
    /// # Errors
    /// An engine of one of the files cannot be made.
    pub(super) fn new(image: Arc<Image>, depth: usize, zeroes: Option<DiscardLimits>) -> io::Result<Queue> {
        let parts = (depth * 2 + MAX_PARTS).min(4096);
        let ring = image.ring(depth)?;
        let events = EventSet::new()?;
        events.add(ring.answers.fd(), 0)?;
        let mut queue = Queue {
            files: Vec::new(),
            parts: IoTable::new(parts, || ()),
            whole_of: vec![0; parts].into(),
            free: (0..parts as u32).rev().collect(),
            wholes: (0..depth).map(|_| None).collect(),
            chunks: (0..CHUNKS).map(|_| None).collect(),
            waiting: VecDeque::new(),
            done: Vec::new(),
            ring,
            asked: 0,
            taken: Vec::new(),
            completions: Vec::new(),
            batch: Vec::new(),
            user: image.grace.join(),
            image,
            zeroes,
            events,
        };
        for file in queue.image.files() {
            match queue.file(file.number()) {
                // It was replaced meanwhile.
                Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => {}
                made => drop(made?),
            }
        }
        Ok(queue)
    }

    /// The engine of a file, which is made if there is none yet.
    fn file(&mut self, number: u8) -> io::Result<&mut OfFile> {
        let at = usize::from(number);
        if self.ring.changed.load(Ordering::SeqCst) {
            self.close_files();
        }
        if self.files.len() <= at {
            self.files.resize_with(at + 1, || None);
        }
        if self.files[at].is_none() {
            let file = self.image.file(number).ok_or(Errno::EBADF)?;
            let depth = self.parts.depth();
            let mut engine = file::engine_of_file(file.file(), depth)?;
            if let Some(cached) = file.cached() {
                engine = Box::new(CachedEngine::new(engine, depth, cached.clone())?);
            }
            self.events.add(engine.fd(), u64::from(number) + 1)?;
            self.files[at] = Some(OfFile { of: Arc::downgrade(&file), engine, out: 0 });
        }
        Ok(self.files[at].as_mut().ok_or(Errno::EBADF)?)
    }

    /// Closes the engines of files that are not the image's any more, of which nobody uses a place.
    fn close_files(&mut self) {
        for (number, of_file) in self.files.iter_mut().enumerate() {
            let now = self.image.file(number as u8).map(|file| Arc::downgrade(&file));
            let is_same = |of_file: &mut OfFile| {
                of_file.out > 0 || now.as_ref().is_some_and(|now| now.ptr_eq(&of_file.of))
            };
            drop(of_file.take_if(|of_file| !is_same(of_file)));
        }
    }

    fn start(&mut self, request: IoRequest) {
        if request.tag().0 as usize >= self.wholes.len() {
            let result = Err(io::ErrorKind::InvalidInput.into());
            return self.done.push(Completion { request, result });
        }
        match request.operation() {
            Operation::Flush => self.flush(request),
            Operation::Discard => self.ask(request, How::ByRing),
            _ if request.is_empty() => self.done.push(Completion { request, result: Ok(()) }),
            Operation::Write if self.zeroes.is_some_and(|limits| is_hole(&request, &limits)) => {
                self.ask(request, How::AsHole);
            }
            Operation::Read | Operation::Write => self.transfer(request),
        }
    }

    /// Everything that was answered is in the file that is written.
    fn flush(&mut self, request: IoRequest) {
        // While this is inside, the file stays one of the image's.
        let turn = self.user.enter();
        match self.image.written().filter(|file| !file.has_failed()) {
            Some(file) if !self.free.is_empty() => {
                let part = Part { bytes: 0..0, file: file.number(), offset: 0 };
                return self.carry_out(request, turn, [part].into_iter());
            }
            Some(_) => self.waiting.push_back(request),
            None => self.done.push(Completion { request, result: Err(Errno::EIO.into()) }),
        }
        self.user.leave(turn);
    }

    fn transfer(&mut self, request: IoRequest) {
        let mut parts = SmallVec::<[Part; 4]>::new();
        let turn = self.user.enter();
        let is_known = self.places(&request, &mut parts);
        if !is_known || parts.len() > MAX_PARTS {
            self.user.leave(turn);
            self.ask(request, if is_known { How::InManyPlaces } else { How::ByRing });
        } else if parts.len() > self.free.len() {
            self.user.leave(turn);
            self.waiting.push_back(request);
        } else if parts.is_empty() {
            self.user.leave(turn);
            self.done.push(Completion { request, result: Ok(()) });
        } else {
            self.carry_out(request, turn, parts.into_iter());
        }
    }

    /// Finds where an operation's bytes are, and zeroes those of a read that are nowhere; `false` if the image's thread is to be asked.
    fn places(&self, request: &IoRequest, parts: &mut SmallVec<[Part; 4]>) -> bool {
        let bits = self.image.unit_bits;
        let start = request.sector() * 512;
        let end = start + request.len() as u64;
        let mut at = start;
        while at < end {
            let unit = at >> bits;
            let number = unit / CHUNK_UNITS;
            let Some((_, chunk)) =
                self.chunks[number as usize % CHUNKS].as_ref().filter(|(known, _)| *known == number)
            else {
                return false;
            };
            let next = ((unit + 1) << bits).min(end);
            let bytes = (at - start) as usize..(next - start) as usize;
            match chunk.get(unit) {
                Place::At { file, offset, writable }
                    if writable || request.operation() == Operation::Read =>
                {
                    let offset = offset + (at - (unit << bits));
                    match parts.last_mut() {
                        Some(last)
                            if last.file == file
                                && last.bytes.end == bytes.start
                                && last.offset + last.bytes.len() as u64 == offset =>
                        {
                            last.bytes.end = bytes.end;
                        }
                        _ => parts.push(Part { bytes, file, offset }),
                    }
                }
                Place::Zero if request.operation() == Operation::Read => zero(request, bytes),
                _ => return false,
            }
            at = next;
        }
        true
    }

    fn carry_out(&mut self, request: IoRequest, turn: usize, parts: impl ExactSizeIterator<Item = Part>) {
        let tag = request.tag().0;
        let mut whole = Whole { request, left: parts.len(), result: Ok(()), turn };
        for part in parts {
            let Some(number) = self.free.pop() else { continue };
            self.whole_of[number as usize] = tag;
            // SAFETY: the operation's token is kept until all its parts are back, or forgotten.
            let of_part =
                unsafe { self.parts.start_part(Tag(number), &whole.request, part.bytes, part.offset / 512) };
            self.batch.push(of_part);
            let mut batch = std::mem::take(&mut self.batch);
            match self.file(part.file) {
                Ok(file) => {
                    file.out += 1;
                    file.engine.submit(&mut batch);
                }
                Err(error) => {
                    self.free.extend(batch.drain(..).map(|request| self.parts.finish(request).0));
                    whole.left -= 1;
                    whole.result = Err(error);
                }
            }
            self.batch = batch;
        }
        if whole.left == 0 {
            self.user.leave(whole.turn);
            self.done.push(Completion { request: whole.request, result: whole.result });
        } else {
            self.wholes[tag as usize] = Some(whole);
        }
    }

    fn ask(&mut self, request: IoRequest, how: How) {
        self.asked += 1;
        let run = Run { request, how, ring: self.ring.clone() };
        if !self.image.ask(Ask::Run(run)) {
            // Its token is dropped, and it fails by that.
            self.asked -= 1;
        }
    }

    /// Takes what the image's thread answers, and starts what it has said the places of.
    #[cold]
    fn take_answers(&mut self) -> io::Result<()> {
        let mut taken = std::mem::take(&mut self.taken);
        self.ring.answers.take(&mut taken)?;
        self.asked -= operations(&taken);
        for answer in taken.drain(..) {
            match answer {
                Answer::Done(request, result) => self.done.push(Completion { request, result }),
                Answer::Files => {
                    self.ring.changed.store(false, Ordering::SeqCst);
                    self.close_files();
                }
                Answer::Known(request, chunks) => {
                    for (number, chunk) in chunks {
                        self.chunks[number as usize % CHUNKS] = Some((number, chunk));
                    }
                    self.transfer(request);
                }
            }
        }
        self.taken = taken;
        if self.asked > 0 && self.image.has_ended() {
            // What it had was dropped.
            self.asked = 0;
        }
        Ok(())
    }

    /// Polls the files' engines; `true` if a part came back.
    fn poll_files(&mut self, completions: &mut Vec<Completion>) -> io::Result<bool> {
        let mut came = false;
        for of_file in self.files.iter_mut().flatten().filter(|of_file| of_file.out > 0) {
            of_file.engine.poll(&mut self.completions)?;
            of_file.out -= self.completions.len();
            came |= !self.completions.is_empty();
            for Completion { request, result } in self.completions.drain(..) {
                let part = self.parts.finish(request).0;
                self.free.push(part);
                let slot = &mut self.wholes[self.whole_of[part as usize] as usize];
                let Some(whole) = slot else { continue };
                whole.left -= 1;
                if result.is_err() && whole.result.is_ok() {
                    whole.result = result;
                }
                if whole.left == 0
                    && let Some(Whole { request, result, turn, .. }) = slot.take()
                {
                    self.user.leave(turn);
                    completions.push(Completion { request, result });
                }
            }
        }
        Ok(came)
    }
}

/// Zeroes bytes of a read's memory.
fn zero(request: &IoRequest, bytes: Range<usize>) {
    let zeroes = [0u8; 4096];
    let mut at = 0;
    for slice in request.slices() {
        let (mut start, end) = (bytes.start.max(at), bytes.end.min(at + slice.len()));
        while start < end {
            let length = (end - start).min(zeroes.len());
            if let Ok(part) = slice.subslice(start - at, length) {
                part.copy_from(&zeroes[..length]);
            }
            start += length;
        }
        at += slice.len();
    }
}

impl Engine for Queue {
    fn register(&mut self, pool: &BouncePool) -> bool {
        // Each one has it, whatever the others say.
        let registered: Vec<bool> =
            self.files.iter_mut().flatten().map(|of_file| of_file.engine.register(pool)).collect();
        registered.into_iter().all(|registered| registered)
    }

    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        requests.drain(..).for_each(|request| self.start(request));
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            if self.asked > 0 || self.ring.changed.load(Ordering::Relaxed) {
                self.take_answers()?;
            }
            let came = self.poll_files(completions)?;
            completions.append(&mut self.done);
            if !came || self.waiting.is_empty() {
                return Ok(());
            }
            std::mem::take(&mut self.waiting).into_iter().for_each(|request| self.start(request));
        }
    }

    fn needs_poll(&self) -> bool {
        !self.done.is_empty() || self.files.iter().flatten().any(|of_file| of_file.engine.needs_poll())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Drop for Queue {
    /// Waits for the parts, and for the image's thread.
    fn drop(&mut self) {
        // Each engine waits for its own.
        self.files.clear();
        for whole in self.wholes.iter_mut().filter_map(Option::take) {
            self.user.leave(whole.turn);
            if self.parts.pinned() > 0 && has_leaked(&mut self.parts) {
                // The kernel may still write to this memory.
                std::mem::forget(whole.request);
            }
        }
        let wait = EventSet::new().and_then(|events| events.add(self.ring.answers.fd(), 0).map(|()| events));
        while self.asked > 0 && !self.image.has_ended() {
            let mut taken = Vec::new();
            if self.ring.answers.take(&mut taken).is_err() {
                break;
            }
            self.asked -= operations(&taken);
            drop(taken);
            match &wait {
                Ok(events) if self.asked > 0 => drop(events.wait(Some(Duration::from_millis(100)))),
                _ => std::thread::yield_now(),
            }
        }
    }
}

/// How many answers are to operations that the image's thread was asked.
fn operations(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| !matches!(answer, Answer::Files)).count()
}

/// Whether tokens of parts are neither back nor dropped.
fn has_leaked(parts: &mut IoTable<()>) -> bool {
    parts.reclaim(&mut Vec::new());
    parts.pinned() > 0
}

const _: () = assert!(MAX_FILES <= u8::MAX as usize);
