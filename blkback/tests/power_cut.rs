//! What a disk holds when its power is cut at any moment is what the frontend was told: flushes, barriers and discards amid writes
//! small and large, by several queues, over a disk that completes late, out of order, and makes nothing durable without a flush.
//!
//! The seed is printed; `XPV_TEST_SEED` sets it. The defects are engines that deceive the backend: each is found.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use blkback::engine::{Completion, FlushState, IoRequest, Operation};
use blkback::{DataPath, Disk, DiskInfo, Engine, Tuning, VbdDriver};
use blkfront::{Options, Request};
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use ring_abi::DomId;
use testkit::block::{Backend, GUEST, XVDA, open, options};
use testkit::power_cut::{Choice, Clock, Kind, LoggedDisk, Promises, WriteLog};
use testkit::random::generator;
use testkit::{BOUND, Machine};

const SECTORS: u64 = 512;
const QUEUES: u32 = 3;
const REQUESTS: usize = 600;
/// Cuts at moments chosen by the seed, beside those at each flush.
const CUTS: usize = 1000;

/// What an engine does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Defect {
    None,
    /// Flushes are answered before they are carried out: they never are.
    EarlyFlush,
    /// As above, but only every other one: the first of a barrier's two.
    NoFlushBeforeBarrier,
}

/// The logged disk below what every file's engine has, and the defect between them.
struct Guarded {
    disk: LoggedDisk,
    flushes: Arc<FlushState>,
    defect: Defect,
}

impl Disk for Guarded {
    fn name(&self) -> String {
        self.disk.name()
    }
    fn info(&self) -> io::Result<DiskInfo> {
        self.disk.info()
    }
    fn engine(&self, depth: usize) -> io::Result<Box<dyn Engine>> {
        let engine = self.disk.engine(depth)?;
        let engine = Deceiver { engine, defect: self.defect, flushes: 0, early: Vec::new() };
        self.flushes.guard(Box::new(engine))
    }
}

struct Deceiver {
    engine: Box<dyn Engine>,
    defect: Defect,
    flushes: usize,
    early: Vec<Completion>,
}

impl Engine for Deceiver {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        let flushes = &mut self.flushes;
        let is_early = |request: &mut IoRequest| {
            *flushes += usize::from(request.operation() == Operation::Flush);
            request.operation() == Operation::Flush
                && match self.defect {
                    Defect::None => false,
                    Defect::EarlyFlush => true,
                    Defect::NoFlushBeforeBarrier => *flushes % 2 == 1,
                }
        };
        let early = requests.extract_if(.., is_early).map(|request| Completion { request, result: Ok(()) });
        self.early.extend(early);
        self.engine.submit(requests);
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.append(&mut self.early);
        self.engine.poll(completions)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.engine.fd()
    }
}

/// A guest that writes.
struct Workload {
    disk: blkfront::Disk,
    clock: Clock,
    promises: Promises,
    random: SmallRng,
    done: Vec<blkfront::Completion>,
}

impl Workload {
    /// Sends so many requests of these kinds, and waits for all answers.
    fn run(&mut self, kinds: &[Kind], count: usize) {
        for _ in 0..count {
            let kind = *kinds.choose(&mut self.random).unwrap();
            let sectors = self.free_sectors(kind);
            self.send(kind, sectors);
            // A batch at a time reaches the backend.
            if self.random.random_ratio(1, 4) {
                self.disk.commit().unwrap();
            }
            if self.random.random_ratio(1, 8) {
                self.take_answers();
            }
        }
        while self.disk.in_flight() > 0 {
            self.take_answers();
        }
    }

    /// Sectors of which no request is in flight: of a few pages mostly, sometimes more than a request without pages of segments has.
    fn free_sectors(&mut self, kind: Kind) -> Range<u64> {
        loop {
            let len = match kind {
                Kind::Flush => return 0..0,
                Kind::Write if self.random.random_ratio(1, 16) => 100,
                _ => self.random.random_range(1..=16),
            };
            let start = self.random.random_range(0..=SECTORS - len);
            if !self.promises.is_in_flight(&(start..start + len)) {
                return start..start + len;
            }
            self.take_answers();
        }
    }

    fn send(&mut self, kind: Kind, sectors: Range<u64>) {
        let number = self.promises.sent(kind, sectors.clone(), self.clock.now());
        let bytes = (sectors.end - sectors.start) as usize * 512;
        let operation = match kind {
            Kind::Write => blkfront::Operation::Write,
            Kind::Barrier => blkfront::Operation::Barrier,
            Kind::Discard => blkfront::Operation::Discard,
            Kind::Flush => blkfront::Operation::Flush,
        };
        let buffer = matches!(kind, Kind::Write | Kind::Barrier).then(|| self.disk.buffer(bytes).unwrap());
        buffer.iter().for_each(|buffer| buffer.fill(&self.promises.data(number)));
        let mut request = Request { token: number as u64, operation, sector: sectors.start, bytes, buffer };
        while let Err(back) = self.disk.submit(request) {
            request = back;
            self.take_answers();
        }
    }

    /// Waits for answers, if any request is in flight.
    fn take_answers(&mut self) {
        let start = Instant::now();
        while self.done.is_empty() && self.disk.in_flight() > 0 {
            assert!(start.elapsed() < BOUND, "no answer within {BOUND:?}");
            self.disk.wait(&mut self.done, Some(BOUND)).unwrap();
        }
        let now = self.clock.now();
        for completion in self.done.drain(..) {
            completion.check().unwrap();
            self.promises.answered(completion.request.token as usize, now);
        }
    }
}

/// Serves a logged disk with this defect, and has a guest write to it.
fn run(seed: u64, defect: Defect, data_path: DataPath, kinds: &[Kind]) -> (WriteLog, Promises) {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let clock = Clock::default();
    let logged = LoggedDisk::new(SECTORS, clock.clone(), seed);
    let disk: Arc<dyn Disk> = Arc::new(Guarded { disk: logged.clone(), flushes: Arc::default(), defect });
    let opener = Box::new(move |_: &_, _: &_| Ok(disk.clone()));
    let mut driver = VbdDriver::with_opener(dom0.clone(), dom0.clone(), opener);
    driver.set_max_queues(QUEUES);
    driver.set_tuning(Tuning { data_path, ..Tuning::default() });
    let _back = Backend::start_with(driver, &dom0);
    machine.attach_disk(GUEST, XVDA, "by the opener");
    let disk = open(&machine.domain(GUEST), Options { queues: QUEUES, ..options() });
    assert_eq!(disk.depth(), 32 * QUEUES as usize);
    let random = generator(seed);
    let mut workload = Workload { disk, clock, promises: Promises::default(), random, done: Vec::new() };
    workload.run(kinds, REQUESTS);
    workload.disk.close().unwrap();
    (logged.log(), workload.promises)
}

/// Cuts the power at each flush, and at moments chosen by the seed.
///
/// # Errors
/// That of the first image that does not hold what was promised.
fn cut(seed: u64, log: &WriteLog, promises: &Promises) -> Result<usize, String> {
    let mut random = generator(seed);
    // Just before, and just after.
    let flushed = log.flushed().chain(promises.flushed()).flat_map(|at| [at, at + 1]);
    let mut cuts: Vec<(u64, Choice)> = flushed.map(|at| (at, Choice::None)).collect();
    let end = cuts.iter().map(|(at, _)| *at).max().unwrap_or(0) + 1;
    cuts.extend((0..CUTS).map(|n| (random.random_range(0..=end), Choice::EVERY[n % Choice::EVERY.len()])));
    for (at, choice) in &cuts {
        let image = log.image(*at, *choice, &mut random);
        promises.check(*at, &image).map_err(|why| format!("{why} ({choice:?}, seed {seed})"))?;
    }
    Ok(cuts.len())
}

fn seed() -> u64 {
    let seed = std::env::var("XPV_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("XPV_TEST_SEED={seed}");
    seed
}

/// Three writes in four requests.
const MIXED: [Kind; 16] = {
    let mut kinds = [Kind::Write; 16];
    kinds[0] = Kind::Flush;
    kinds[1] = Kind::Flush;
    kinds[2] = Kind::Barrier;
    kinds[3] = Kind::Discard;
    kinds
};

#[test]
fn disk_whose_power_is_cut_holds_what_was_flushed() {
    let seed = seed();
    for data_path in [DataPath::Map, DataPath::Copy] {
        let (log, promises) = run(seed, Defect::None, data_path, &MIXED);
        assert!(log.flushed().count() >= 40, "barriers have two flushes each");
        let cuts = cut(seed, &log, &promises).unwrap();
        assert!(cuts > CUTS + 100, "{cuts} cuts");
    }
}

#[test]
fn flush_that_is_answered_early_is_found() {
    let seed = seed();
    let (log, promises) = run(seed, Defect::EarlyFlush, DataPath::Map, &MIXED);
    cut(seed, &log, &promises).unwrap_err();
}

#[test]
fn barrier_without_a_flush_before_its_write_is_found() {
    let seed = seed();
    let kinds = [Kind::Write, Kind::Write, Kind::Write, Kind::Barrier];
    let (log, promises) = run(seed, Defect::NoFlushBeforeBarrier, DataPath::Map, &kinds);
    cut(seed, &log, &promises).unwrap_err();
    // The same without the defect.
    let (log, promises) = run(seed, Defect::None, DataPath::Map, &kinds);
    cut(seed, &log, &promises).unwrap();
}
