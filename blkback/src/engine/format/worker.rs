// Not a core: does I/O or calls a hypervisor.

//! An image's own thread: says where the disk's bytes are, allocates clusters, reads what is compressed, discards. It alone changes the
//! image's tables, so that no two rings change them at once.
//!
//! An operation that has changed tables is answered once they are written, as the guest may live on where this process is killed: what
//! is answered is in the files then, and a flush has nothing to do but to synchronize the file. Operations that wait at the same time
//! are answered together.

use super::image::{Answer, Ask, Chunks, How, Image, Ring, Run, Running};
use super::layer::{Chain, Found, Kind, Mapped};
use super::place::{CHUNK_UNITS, Chunk, Place};
use crate::engine::{IoRequest, Operation};
use imago::format::drivers::FormatDriverInstance;
use nix::errno::Errno;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Operations that are answered together, at most.
const BATCH: usize = 128;
/// Chunks that are remembered: what is known of more is forgotten. 16 MiB.
const MAX_CHUNKS: usize = 4096;
/// Bytes that are read or written at once.
pub(super) const PART: u64 = 1 << 20;

/// What the thread has.
pub(crate) struct Worker {
    pub(super) image: Arc<Image>,
    pub(super) chain: Chain,
    chunks: HashMap<u64, Arc<Chunk>>,
    /// Tables were changed and not written.
    pub(super) changed: bool,
    /// Operations that are carried out, and answered once the tables are written.
    finished: Vec<(IoRequest, Arc<Ring>)>,
    /// Where units are once the tables are written.
    pub(super) moved: Vec<(u64, Place)>,
    /// What is done in slices.
    pub(super) running: Option<Running>,
}

impl Worker {
    pub(super) fn new(image: Arc<Image>, chain: Chain) -> Worker {
        chain.top().file.start_ahead();
        Worker {
            image,
            chain,
            chunks: HashMap::new(),
            changed: false,
            finished: Vec::new(),
            moved: Vec::new(),
            running: None,
        }
    }

    /// Does what is asked until no more will come, and leaves the image as it is then.
    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        while self.next(&mut batch) {
            for ask in batch.drain(..) {
                match ask {
                    Ask::Run(run) => self.carry_out(run),
                    Ask::Job(job, reply) => {
                        self.answer();
                        self.start_job(job, reply);
                    }
                }
            }
            self.answer();
            self.run_slice();
        }
        // Who waits for it is told that the image is closed.
        self.running = None;
        self.changed = true;
        let file = &self.chain.top().file.clone();
        let written = self.write_tables().and_then(|()| file.stop_ahead());
        let written = written.and_then(|()| file.sync_all_written());
        if let Err(error) = written {
            tracing::error!(path = %self.chain.top().file.path().display(), %error, "failed to close an image");
        }
    }

    /// Moves what is asked to `batch`, and waits for it where there is nothing else to do; `false` if no more will come.
    fn next(&self, batch: &mut Vec<Ask>) -> bool {
        match self.running {
            Some(_) => self.image.next_if_any(batch, BATCH),
            None => self.image.next(batch, BATCH),
        }
    }

    fn carry_out(&mut self, run: Run) {
        let Run { request, how, ring } = run;
        let start = request.sector() * 512;
        let range = start..start + request.len() as u64;
        let result = match request.operation() {
            Operation::Discard => self.discard(range, false),
            Operation::Write if how == How::AsHole => self.discard(range, true),
            Operation::Flush => Ok(()),
            Operation::Read | Operation::Write => {
                let is_write = request.operation() == Operation::Write;
                let known = match how {
                    How::ByRing => self.known(&range, is_write),
                    _ => Ok(None),
                };
                match known {
                    Ok(Some(chunks)) => return ring.answers.push(Answer::Known(request, chunks)),
                    Ok(None) if is_write => self.write(&request, range),
                    Ok(None) => self.read(&request, range),
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Ok(()) if self.changed => self.finished.push((request, ring)),
            result => {
                if let Err(error) = &result {
                    self.report(error);
                }
                ring.answers.push(Answer::Done(request, result));
            }
        }
    }

    /// Says what failed, of which the guest is told nothing but that it did.
    fn report(&self, error: &io::Error) {
        tracing::debug!(path = %self.chain.top().file.path().display(), %error, "an operation failed");
    }

    /// Writes the tables, and answers what waited for that.
    pub(super) fn answer(&mut self) {
        let written = self.write_tables();
        if let Err(error) = &written {
            self.report(error);
        }
        for (unit, place) in std::mem::take(&mut self.moved) {
            if written.is_ok()
                && let Some(chunk) = self.chunks.get(&(unit / CHUNK_UNITS))
            {
                chunk.set(unit, place);
            }
        }
        for (request, ring) in self.finished.drain(..) {
            let result = written.as_ref().map(|_| ()).map_err(|error| {
                io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(Errno::EIO as i32))
            });
            ring.answers.push(Answer::Done(request, result));
        }
    }

    /// Writes what was changed of the tables to the file.
    pub(super) fn write_tables(&mut self) -> io::Result<()> {
        if self.changed
            && let Ok(mapped) = self.mapped()
        {
            mapped.tables.flush()?;
        }
        self.changed = false;
        Ok(())
    }

    /// The image that the guest writes.
    pub(super) fn mapped(&self) -> io::Result<&Mapped> {
        self.mapped_at(0)
    }

    /// The qcow2 image with so many above it.
    pub(super) fn mapped_at(&self, layer: usize) -> io::Result<&Mapped> {
        match self.chain.0.get(layer).map(|layer| &layer.kind) {
            Some(Kind::Qcow2(mapped)) => Ok(mapped),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.image.size.load(Ordering::Relaxed)
    }

    /// The chunks that say where a range is, if a ring can do the operation by them.
    fn known(&mut self, range: &Range<u64>, is_write: bool) -> io::Result<Option<Chunks>> {
        let bits = self.image.unit_bits;
        let units = range.start >> bits..((range.end - 1) >> bits) + 1;
        let mut chunks = Chunks::new();
        for number in units.start / CHUNK_UNITS..(units.end - 1) / CHUNK_UNITS + 1 {
            let chunk = self.chunk(number)?;
            let first = units.start.max(number * CHUNK_UNITS);
            let last = units.end.min((number + 1) * CHUNK_UNITS);
            for unit in first..last {
                let is_usable = match chunk.get(unit) {
                    Place::At { writable, .. } => writable || !is_write,
                    Place::Zero => !is_write,
                    Place::Slow | Place::Unknown => false,
                };
                if !is_usable {
                    return Ok(None);
                }
            }
            chunks.push((number, chunk));
        }
        Ok(Some(chunks))
    }

    /// The chunk with a number, in which all places are known.
    fn chunk(&mut self, number: u64) -> io::Result<Arc<Chunk>> {
        if self.chunks.len() >= MAX_CHUNKS && !self.chunks.contains_key(&number) {
            self.forget_all();
        }
        let chunk = self.chunks.entry(number).or_default().clone();
        let units = (self.size().div_ceil(1 << self.image.unit_bits)).min((number + 1) * CHUNK_UNITS);
        let mut unit = number * CHUNK_UNITS;
        while unit < units {
            if chunk.get(unit) != Place::Unknown || self.moved.iter().any(|(moved, _)| *moved == unit) {
                unit += 1;
                continue;
            }
            unit = self.look_up(&chunk, unit, units)?;
        }
        Ok(chunk)
    }

    /// Enters the places of the units from one on that are known at once; returns the first that is not.
    fn look_up(&self, chunk: &Chunk, unit: u64, end: u64) -> io::Result<u64> {
        let bits = self.image.unit_bits;
        let start = unit << bits;
        let (found, length) = self.chain.find(0, start, ((end << bits) - start).min(self.size() - start))?;
        let is_last = start + length == self.size();
        let whole = if is_last { length.div_ceil(1 << bits) } else { length >> bits };
        if whole == 0 {
            chunk.set(unit, Place::Slow);
            return Ok(unit + 1);
        }
        for number in 0..whole {
            if chunk.get(unit + number) != Place::Unknown {
                continue;
            }
            let moved = match found {
                Found::At { layer, offset, writable } => {
                    Found::At { layer, offset: offset + (number << bits), writable }
                }
                found => found,
            };
            chunk.set(unit + number, self.chain.place(moved, 1 << bits));
        }
        Ok(unit + whole)
    }

    /// Forgets where anything is. Who has read it before may use it still.
    pub(super) fn forget_all(&mut self) {
        self.chunks.drain().for_each(|(_, chunk)| chunk.clear());
        self.moved.clear();
    }

    /// Forgets where a range's units are, and waits until nobody uses what they were.
    pub(super) fn withdraw(&mut self, range: &Range<u64>) {
        let bits = self.image.unit_bits;
        for unit in range.start >> bits..range.end.div_ceil(1 << bits) {
            if let Some(chunk) = self.chunks.get(&(unit / CHUNK_UNITS)) {
                chunk.set(unit, Place::Unknown);
            }
        }
        self.wait_for_users();
    }

    /// Waits until the rings have completed what they do at places that they have read.
    pub(super) fn wait_for_users(&self) {
        self.image.grace.wait(|| std::thread::sleep(std::time::Duration::from_micros(50)));
    }

    /// Reads for a ring.
    fn read(&self, request: &IoRequest, range: Range<u64>) -> io::Result<()> {
        let mut buffer = self.chain.top().file.buffer(PART.min(range.end - range.start) as usize)?;
        let mut slices = request.slices();
        let mut slice = slices.next();
        let mut at = range.start;
        while at < range.end {
            let bytes = (range.end - at).min(PART) as usize;
            let part = &mut buffer.as_mut().into_slice()[..bytes];
            self.chain.read(0, part, at)?;
            at += bytes as u64;
            let mut rest = &part[..];
            while !rest.is_empty() {
                let Some(into) = slice.take() else { return Err(Errno::EFAULT.into()) };
                let fits = rest.len().min(into.len());
                into.subslice(0, fits).map_err(io::Error::other)?.copy_from(&rest[..fits]);
                rest = &rest[fits..];
                slice = if fits < into.len() { into.offset(fits).ok() } else { slices.next() };
            }
        }
        Ok(())
    }
}
