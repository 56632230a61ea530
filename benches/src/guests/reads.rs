//! Random reads of many guests at a time, beside as many of one guest: the depths of all together are the same.

use super::population::{Population, open_disk, text};
use crate::row::interleave;
use blkfront::{Completion, Disk, Operation, Options, Request};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::time::{Duration, Instant};
use testkit::block::XVDA;

/// Guests that read at a time.
pub(super) const BUSY: usize = 100;
/// Reads in flight of each of them.
const DEPTH: usize = 4;
/// Pages of the ring of the guest that reads alone, as a power of two: 512 requests.
const RING_PAGE_ORDER: u32 = 4;
/// The disk of the guest that reads alone, xvdc.
const XVDC: u32 = XVDA + 32;
/// Bytes a read.
const BLOCK: usize = 4096;
/// One measurement.
const TIME: Duration = Duration::from_millis(700);
/// Measurements of a row.
pub(super) const PAIRS: usize = 7;

/// What is measured, for the reader.
pub(super) fn what() -> String {
    format!("4 KiB random reads, tmpfs: {BUSY} guests, depth {DEPTH} each; one guest, depth {}", BUSY * DEPTH)
}

/// Thousands of reads a second of many guests and of one, alternately.
///
/// # Errors
/// The disk of the one does not connect, or a disk fails a request.
pub(super) fn pairs(population: &mut Population, pairs: usize) -> Result<Vec<(f64, f64)>, String> {
    let domain = population.guests[0].domain.clone();
    let nodes = population.disk_nodes(grant_table::GrantTable::domid(&*domain), XVDC)?;
    population.attach(&nodes)?;
    let options = Options { ring_page_order: RING_PAGE_ORDER, ..Options::default() };
    let mut alone = Reader::new(open_disk(&domain, XVDC, options)?)?;
    let mut many = Vec::with_capacity(BUSY);
    for guest in population.guests.drain(..BUSY) {
        many.push((Reader::new(guest.disk)?, guest.domain));
    }
    let failed = std::cell::RefCell::new(None);
    let run = |readers: &mut [&mut Reader], depth| match run(readers, depth) {
        Ok(rate) => rate / 1e3,
        Err(why) => {
            failed.borrow_mut().get_or_insert(why);
            f64::NAN
        }
    };
    let figures = interleave(
        pairs,
        || run(&mut many.iter_mut().map(|(reader, _)| reader).collect::<Vec<_>>(), DEPTH),
        || run(&mut [&mut alone], BUSY * DEPTH),
    );
    failed.into_inner().map_or(Ok(figures), Err)
}

/// A disk, and the blocks that it is asked for.
struct Reader {
    disk: Disk,
    blocks: u64,
    state: u64,
}

impl Reader {
    fn new(disk: Disk) -> Result<Reader, String> {
        let blocks = disk.info().ok_or("a disk is not connected")?.sectors / 8;
        Ok(Reader { disk, blocks, state: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Makes a read of a random block.
    fn submit(&mut self, request: Request) -> Result<(), String> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let sector = self.state % self.blocks * 8;
        self.disk.submit(Request { sector, ..request }).map_err(|_| "a ring is full".to_owned())
    }

    fn begin(&mut self, depth: usize) -> Result<(), String> {
        for token in 0..depth as u64 {
            let buffer = Some(self.disk.buffer(BLOCK).map_err(text)?);
            self.submit(Request { token, operation: Operation::Read, sector: 0, bytes: BLOCK, buffer })?;
        }
        self.disk.commit().map_err(text)
    }

    /// Takes what is complete, and makes as many reads again if they are to go on.
    fn turn(&mut self, done: &mut Vec<Completion>, goes_on: bool) -> Result<usize, String> {
        let count = self.disk.poll(done).map_err(text)?;
        for completion in done.drain(..) {
            completion.check().map_err(text)?;
            if goes_on {
                self.submit(completion.request)?;
            }
        }
        self.disk.commit().map_err(text)?;
        Ok(count)
    }
}

/// Keeps so many reads of each in flight for a time; reads a second of all.
fn run(readers: &mut [&mut Reader], depth: usize) -> Result<f64, String> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(text)?;
    for (number, reader) in readers.iter().enumerate() {
        epoll.add(reader.disk.fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).map_err(text)?;
    }
    let mut events = vec![EpollEvent::empty(); readers.len()];
    let mut done = Vec::with_capacity(depth);
    let mut awake: Vec<usize> = (0..readers.len()).collect();
    for reader in readers.iter_mut() {
        reader.begin(depth)?;
    }
    let start = Instant::now();
    let mut count = 0;
    while !awake.is_empty() || readers.iter().any(|reader| reader.disk.in_flight() > 0) {
        let goes_on = start.elapsed() < TIME;
        let mut next = Vec::with_capacity(readers.len());
        for number in awake.drain(..) {
            let reader = &mut readers[number];
            let taken = reader.turn(&mut done, goes_on)?;
            count += taken;
            if taken > 0 || reader.disk.arm().map_err(text)? {
                next.push(number);
            }
        }
        awake = next;
        let timeout = if awake.is_empty() { EpollTimeout::from(100u16) } else { EpollTimeout::ZERO };
        let ready = epoll.wait(&mut events, timeout).map_err(text)?;
        for event in &events[..ready] {
            let number = event.data() as usize;
            readers[number].disk.process_events().map_err(text)?;
            if !awake.contains(&number) {
                awake.push(number);
            }
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
