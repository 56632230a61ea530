// Not a core: does I/O or calls a hypervisor.

//! The engine of a file that is cached, over one that does the I/O: an operation's bytes are copied from blocks that are there, and come
//! with the blocks that this ring or another one reads.
#![allow(unsafe_code)] // A part's token points into its operation's memory.

use super::counters::Looked;
use super::file::{CachedFile, Forgotten, Step};
use super::shared::{Fill, Filled, Part, Slots, lose};
use crate::engine::done::Done;
use crate::engine::{BouncePool, Completion, Engine, IoRequest, IoTable, Operation, Tag};
use event_loop::EventSet;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// Bytes that are read at once, at most.
const MAX_READ: usize = 1 << 20;

/// An operation that was not handed back.
struct Whole {
    request: IoRequest,
    /// Parts that are not complete, and 1 while it is being looked for.
    left: usize,
    result: io::Result<()>,
}

/// What waits for a tag of the engine below.
enum Io {
    Fill(Fill),
    /// Bytes of an operation, past the cache.
    Direct(u32, Range<usize>),
}

/// What a tag of the engine below is used for.
enum Use {
    Fill(Slots),
    Direct(u32),
}

/// What is dropped after the engine below, which has ended its I/O then, or has leaked it.
struct Work {
    table: IoTable<Option<Fill>>,
    /// By tag.
    uses: Box<[Option<Use>]>,
    wholes: Box<[Option<Whole>]>,
    file: Arc<CachedFile>,
}

/// The engine.
pub(in crate::engine) struct CachedEngine {
    engine: Box<dyn Engine>,
    work: Work,
    free: Vec<u32>,
    waiting: VecDeque<Io>,
    /// Parts that wait for blocks.
    blocks: usize,
    filled: Arc<Done<Filled>>,
    /// It has written to the file.
    forgotten: Option<Forgotten>,
    done: Vec<Completion>,
    completions: Vec<Completion>,
    told: Vec<Filled>,
    events: EventSet,
}

impl CachedEngine {
    /// Over an engine of the file, which has as many operations at once as this one.
    ///
    /// # Errors
    /// There are no descriptors.
    pub(in crate::engine) fn new(
        engine: Box<dyn Engine>,
        depth: usize,
        file: Arc<CachedFile>,
    ) -> io::Result<CachedEngine> {
        let filled = Arc::new(Done::new(depth)?);
        let events = EventSet::new()?;
        events.add(engine.fd(), 0)?;
        events.add(filled.fd(), 1)?;
        let work = Work {
            table: IoTable::new(depth, || None),
            uses: (0..depth).map(|_| None).collect(),
            wholes: (0..depth).map(|_| None).collect(),
            file,
        };
        Ok(CachedEngine {
            engine,
            work,
            free: (0..depth as u32).rev().collect(),
            waiting: VecDeque::new(),
            blocks: 0,
            filled,
            forgotten: None,
            done: Vec::new(),
            completions: Vec::new(),
            told: Vec::new(),
            events,
        })
    }

    fn start(&mut self, request: IoRequest) {
        let tag = request.tag().0;
        if self.work.wholes.get(tag as usize).is_none_or(Option::is_some) {
            let result = Err(io::ErrorKind::InvalidInput.into());
            return self.done.push(Completion { request, result });
        }
        let (operation, bytes) = (request.operation(), request.len());
        self.work.wholes[tag as usize] = Some(Whole { request, left: 1, result: Ok(()) });
        match operation {
            Operation::Read => self.look(tag, bytes),
            Operation::Write | Operation::Discard => {
                let file = &self.work.file;
                self.forgotten.get_or_insert_with(|| file.forget());
                self.direct(tag, 0..bytes);
            }
            Operation::Flush => self.direct(tag, 0..bytes),
        }
        self.settle(tag, Ok(()));
    }

    /// Copies what is there of a read, and sees to the rest.
    fn look(&mut self, tag: u32, bytes: usize) {
        let (mut at, mut looked) = (0, Looked::default());
        while let Some((block, part)) = self.work.copy_until_missing(tag, at..bytes, &mut looked) {
            at = part.bytes.end;
            self.begin(block, part, &mut looked);
        }
        self.work.file.counters.add(looked);
    }

    #[cold]
    fn begin(&mut self, block: u64, part: Part, looked: &mut Looked) {
        let whole = part.whole;
        match self.work.file.begin(block, part, &self.filled) {
            Step::Copy(part, pin) => {
                looked.hits += 1;
                self.expect(whole);
                self.fill(Filled { part, pin: Some(pin) });
            }
            Step::Wait => {
                looked.waits += 1;
                self.blocks += 1;
                self.expect(whole);
            }
            Step::Read(fill) => {
                looked.misses += 1;
                self.blocks += 1;
                self.expect(whole);
                self.read(fill);
            }
            Step::Bypass(part) => {
                looked.misses += 1;
                self.direct(whole, part.bytes);
            }
        }
    }

    /// One more part of an operation is to be completed.
    fn expect(&mut self, tag: u32) {
        if let Some(whole) = &mut self.work.wholes[tag as usize] {
            whole.left += 1;
        }
    }

    /// Reads a block, together with the last one if it is the next.
    fn read(&mut self, fill: Fill) {
        let most = MAX_READ / self.work.file.shared.block();
        let rest = match self.waiting.back_mut() {
            Some(Io::Fill(last)) => last.append(fill, most).err(),
            _ => Some(fill),
        };
        self.waiting.extend(rest.map(Io::Fill));
    }

    /// Reads or writes past the cache, together with the part before if it is the next.
    fn direct(&mut self, tag: u32, bytes: Range<usize>) {
        match self.waiting.back_mut() {
            Some(Io::Direct(last, before)) if *last == tag && before.end == bytes.start => {
                before.end = bytes.end;
            }
            _ => {
                self.expect(tag);
                self.waiting.push_back(Io::Direct(tag, bytes));
            }
        }
    }

    /// Hands what waits to the engine below, as far as it takes more; `true` if there was any.
    fn submit_waiting(&mut self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let mut looked = Looked::default();
        let mut batch = Vec::new();
        while !self.waiting.is_empty() {
            let Some(tag) = self.free.pop() else { break };
            let Some(io) = self.waiting.pop_front() else { break };
            looked.read_bytes += self.bytes_read(&io);
            match self.work.io(tag, io) {
                Some(request) => batch.push(request),
                None => {
                    self.work.clear(Tag(tag));
                    self.free.push(tag);
                }
            }
        }
        let any = !batch.is_empty();
        self.engine.submit(&mut batch);
        self.work.file.counters.add(looked);
        any
    }

    fn bytes_read(&self, io: &Io) -> u64 {
        match io {
            Io::Fill(fill) => fill.len() as u64,
            Io::Direct(whole, bytes) => match &self.work.wholes[*whole as usize] {
                Some(whole) if whole.request.operation() == Operation::Read => bytes.len() as u64,
                _ => 0,
            },
        }
    }

    /// Takes what the engine below has completed; `true` if there was any.
    fn poll_engine(&mut self) -> io::Result<bool> {
        if self.work.table.pinned() == 0 {
            return Ok(false);
        }
        let mut completions = std::mem::take(&mut self.completions);
        let polled = self.engine.poll(&mut completions);
        let any = !completions.is_empty();
        for Completion { request, result } in completions.drain(..) {
            let tag = self.work.table.finish(request);
            let fill = self.work.table.memory_mut(tag).take();
            let of = self.work.uses[tag.0 as usize].take();
            self.free.push(tag.0);
            match (fill, of) {
                (Some(fill), _) => fill.complete(result.is_ok(), &self.filled, &mut self.told),
                (None, Some(Use::Direct(whole))) => self.settle(whole, result),
                (None, _) => {}
            }
        }
        self.completions = completions;
        polled.map(|()| any)
    }

    /// Takes what waiting parts were told.
    fn take_filled(&mut self) -> io::Result<()> {
        if self.blocks == 0 {
            return Ok(());
        }
        let mut told = std::mem::take(&mut self.told);
        let taken = self.filled.take(&mut told);
        self.blocks -= told.len();
        told.drain(..).for_each(|filled| self.fill(filled));
        self.told = told;
        taken
    }

    /// Copies a part's bytes from its block, or has them read from the file.
    fn fill(&mut self, Filled { part, pin }: Filled) {
        let tag = part.whole;
        let Some(Whole { request, .. }) = &self.work.wholes[tag as usize] else { return };
        let in_block = part.from..part.from + part.bytes.len();
        let bytes = part.bytes.clone();
        let copied = pin.is_some_and(|pin| pin.with(in_block, |slice| copy(request, bytes, slice)));
        if !copied {
            self.direct(tag, part.bytes);
        }
        self.settle(tag, Ok(()));
    }

    /// Completes a part of an operation.
    fn settle(&mut self, tag: u32, result: io::Result<()>) {
        let slot = &mut self.work.wholes[tag as usize];
        let Some(whole) = slot else { return };
        whole.left -= 1;
        if result.is_err() && whole.result.is_ok() {
            whole.result = result;
        }
        if whole.left == 0
            && let Some(Whole { request, result, .. }) = slot.take()
        {
            self.done.push(Completion { request, result });
        }
    }
}

impl Work {
    /// Copies those of an operation's bytes that are there, up to the first block that is not, which it returns.
    #[inline]
    fn copy_until_missing(&self, tag: u32, bytes: Range<usize>, looked: &mut Looked) -> Option<(u64, Part)> {
        let Whole { request, .. } = self.wholes[tag as usize].as_ref()?;
        let (start, block_bits) = (request.sector() * 512, self.file.shared.block_bits);
        let mut at = bytes.start;
        while at < bytes.end {
            let offset = start + at as u64;
            let block = offset >> block_bits;
            let from = (offset - (block << block_bits)) as usize;
            let end = bytes.end.min(at + self.file.shared.block() - from);
            if !self.file.with(block, from, end - at, |slice| copy(request, at..end, slice)) {
                return Some((block, Part { whole: tag, bytes: at..end, from }));
            }
            looked.hits += 1;
            at = end;
        }
        None
    }

    /// Gives up what a tag was used for, which is not out.
    fn clear(&mut self, tag: Tag) {
        *self.table.memory_mut(tag) = None;
        self.uses[tag.0 as usize] = None;
    }

    /// The token of an operation of the engine below.
    fn io(&mut self, tag: u32, io: Io) -> Option<IoRequest> {
        let at = tag as usize;
        match io {
            Io::Fill(fill) => {
                let sector = fill.offset() / 512;
                self.uses[at] = Some(Use::Fill(fill.slots().clone()));
                *self.table.memory_mut(Tag(tag)) = Some(fill);
                self.table.start(Tag(tag), Operation::Read, sector, |fill, slices| {
                    fill.as_ref().is_some_and(|fill| fill.slices().all(|slice| slices.push(slice)))
                })
            }
            Io::Direct(whole, bytes) => {
                let Some(Whole { request, .. }) = &self.wholes[whole as usize] else { return None };
                self.uses[at] = Some(Use::Direct(whole));
                let sector = request.sector() + bytes.start as u64 / 512;
                // SAFETY: the operation's token is kept until all its parts are back, or forgotten.
                Some(unsafe { self.table.start_part(Tag(tag), request, bytes, sector) })
            }
        }
    }
}

/// Copies bytes of a block to those of a read.
#[inline]
fn copy(request: &IoRequest, bytes: Range<usize>, block: VolatileSlice<'_>) {
    let mut at = 0;
    for slice in request.slices() {
        let (start, end) = (bytes.start.max(at), bytes.end.min(at + slice.len()));
        if start < end
            && let (Ok(from), Ok(to)) =
                (block.subslice(start - bytes.start, end - start), slice.subslice(start - at, end - start))
        {
            from.copy_to_volatile_slice(to);
        }
        at += slice.len();
        if at >= bytes.end {
            return;
        }
    }
}

impl Engine for CachedEngine {
    fn register(&mut self, pool: &BouncePool) -> bool {
        self.engine.register(pool)
    }

    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        requests.drain(..).for_each(|request| self.start(request));
        self.submit_waiting();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            let any = self.poll_engine()?;
            self.take_filled()?;
            let submitted = self.submit_waiting();
            completions.append(&mut self.done);
            if !any && !submitted {
                return Ok(());
            }
        }
    }

    fn needs_poll(&self) -> bool {
        !self.done.is_empty() || !self.told.is_empty() || self.engine.needs_poll()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Drop for Work {
    /// Blocks that were being read are given up: who waits for them reads them. Those that the kernel may still write to are lost.
    fn drop(&mut self) {
        let mut dropped = Vec::new();
        self.table.reclaim(&mut dropped);
        dropped.into_iter().for_each(|tag| self.clear(tag));
        if self.table.pinned() == 0 {
            return;
        }
        for of in self.uses.iter().flatten() {
            match of {
                Use::Fill(slots) => lose(&self.file.shared, slots),
                Use::Direct(whole) => std::mem::forget(self.wholes[*whole as usize].take()),
            }
        }
    }
}
