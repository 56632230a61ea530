// Not a core: does I/O or calls a hypervisor.

//! Tests: a qcow2 image whose power is cut at any moment, or whose process is killed, has leaks at most, and holds what its guest was promised.
//!
//! Operations from a seed run against an image, and all that arrives at its file is logged. `XPV_POWER_CUTS` sets how many seeds there are,
//! `XPV_TEST_SEED` the first one.

use super::chain::OpenChain;
use super::create::NewImage;
use super::image::Image;
use super::image_file::{Change, ImageFile, Record};
use super::layer::{Chain, Found, Layer};
use super::worker::Worker;
use super::writes::Data;
use crate::engine::base_cache::{BaseCache, DiskCache};
use crate::engine::done::lock;
use crate::engine::{Access, Mode};
use rand::RngExt;
use rand::rngs::SmallRng;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use testkit::power_cut::{Choice, Clock, Kind, Logged, Promises, WriteLog};
use testkit::random::generator;

/// Sectors of the disk.
const SECTORS: u64 = 2048;
/// Sectors that the file of its image has at most.
const FILE_SECTORS: u64 = 1 << 14;
const OPERATIONS: usize = 120;
/// Cuts of an image.
const CUTS: usize = 12;

/// Who is told what is done to a file.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Clone, Debug, Default)]
struct Recorded {
    clock: Clock,
    log: WriteLog,
    /// The file as it is.
    file: Vec<u8>,
    /// When the file's length became this.
    lengths: Vec<(u64, u64)>,
    /// It is a guest's flush that synchronizes the file.
    is_guests: bool,
    /// The numbers of flushes that are no guest's.
    own_syncs: Vec<usize>,
}

impl Record for Recorder {
    fn record(&self, change: Change<'_>) {
        let recorded = &mut *lock(&self.0);
        let length = recorded.lengths.last().map_or(0, |(_, length)| *length);
        let change = match change {
            Change::Write(bytes, offset) => {
                let end = offset + bytes.len() as u64;
                assert!(end <= FILE_SECTORS * 512, "a file of {end} bytes");
                recorded.file.resize(FILE_SECTORS as usize * 512, 0);
                recorded.file[offset as usize..end as usize].copy_from_slice(bytes);
                if end > length {
                    recorded.lengths.push((recorded.clock.now(), end));
                }
                // A medium writes whole sectors.
                let whole = (offset / 512 * 512) as usize..end.next_multiple_of(512) as usize;
                testkit::power_cut::Change::Write {
                    sector: offset / 512,
                    data: recorded.file[whole].to_vec(),
                }
            }
            Change::Punch(offset, bytes) => {
                recorded.file[offset as usize..(offset + bytes) as usize].fill(0);
                testkit::power_cut::Change::Discard(offset / 512..(offset + bytes) / 512)
            }
            Change::Length(length) => {
                assert!(length <= FILE_SECTORS * 512, "a file of {length} bytes");
                recorded.file[length as usize..].fill(0);
                return recorded.lengths.push((recorded.clock.now(), length));
            }
            Change::Sync => {
                if !recorded.is_guests {
                    recorded.own_syncs.push(recorded.log.operations.len());
                }
                testkit::power_cut::Change::Flush
            }
        };
        let (submitted, completed) = (recorded.clock.now(), Some(recorded.clock.now()));
        recorded.log.operations.push(Logged { change, submitted, completed });
    }
}

impl Recorder {
    /// When what is done to a file by the image itself was synchronized is forgotten.
    fn without_own_syncs(mut self) -> Recorded {
        let recorded = std::mem::take(&mut *lock(&self.0));
        self.0 = Arc::default();
        let mut recorded = recorded;
        let own = std::mem::take(&mut recorded.own_syncs);
        let mut number = 0;
        recorded.log.operations.retain(|_| {
            number += 1;
            !own.contains(&(number - 1))
        });
        recorded
    }
}

impl Recorded {
    /// The file after a cut at this moment.
    fn file(&self, cut: u64, choice: Choice, random: &mut SmallRng) -> Vec<u8> {
        let mut file = self.log.image(cut, choice, random);
        let operations = self.log.operations.iter();
        let flushes = operations.filter(|logged| matches!(logged.change, testkit::power_cut::Change::Flush));
        let durable =
            flushes.filter(|flush| flush.completed.is_some_and(|at| at < cut)).map(|f| f.submitted).max();
        let durable = durable.unwrap_or(0);
        let first = self.lengths.iter().rposition(|(at, _)| *at < durable).unwrap_or(0);
        let last = self.lengths.partition_point(|(at, _)| *at < cut).max(first + 1);
        let lengths = &self.lengths[first..last];
        let length = match choice {
            Choice::None => lengths[0],
            Choice::All => lengths[lengths.len() - 1],
            Choice::Requests | Choice::Sectors => lengths[random.random_range(0..lengths.len())],
        };
        file.truncate(length.1 as usize);
        file
    }
}

/// How an image is made.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    cluster_bits: u32,
    has_backing: bool,
}

/// An image, and who writes to it.
struct Run {
    worker: Worker,
    recorder: Recorder,
    clock: Clock,
    promises: Promises,
    waiting: Vec<usize>,
    random: SmallRng,
}

fn open(path: &Path, mode: Mode) -> Chain {
    let access = Access { mode, direct: false, user: None, own_loop: None, server: None };
    let open = OpenChain::open(path, access, &|_, _| Ok(())).unwrap();
    let layers = open.layers.into_iter().enumerate();
    Chain(layers.map(|(at, layer)| Layer::open(layer, 1 - at as u8, None).unwrap()).collect())
}

fn create(path: &Path, kinds: Kinds) {
    let backing = kinds.has_backing.then_some(("base", "raw"));
    let image = NewImage { size: SECTORS * 512, cluster_bits: kinds.cluster_bits, backing };
    std::fs::write(path, image.bytes().unwrap()).unwrap();
}

/// The image's thread, which does not run.
fn worker(chain: Chain, kinds: Kinds) -> Worker {
    let files = chain.0.iter().rev().map(|layer| layer.file.clone()).collect();
    let cache = DiskCache::new(&BaseCache::default());
    Worker::new(Arc::new(Image::new(kinds.cluster_bits, SECTORS * 512, files, cache)), chain)
}

/// Ends as it does when no more will come.
fn close(worker: Worker) {
    worker.image.close();
    worker.run();
}

impl Run {
    fn start(directory: &Path, kinds: Kinds, seed: u64) -> Run {
        let path = directory.join("image");
        create(&path, kinds);
        let (clock, mut promises) = (Clock::default(), Promises::default());
        if kinds.has_backing {
            let number = promises.sent(Kind::Write, 0..SECTORS, clock.now());
            std::fs::write(directory.join("base"), promises.data(number)).unwrap();
            promises.answered(number, clock.now());
            let flush = promises.sent(Kind::Flush, 0..0, clock.now());
            promises.answered(flush, clock.now());
        }
        let recorder = Recorder::default();
        let recorded = Recorded { clock: clock.clone(), ..Recorded::default() };
        *lock(&recorder.0) =
            Recorded { log: WriteLog { sectors: FILE_SECTORS, ..WriteLog::default() }, ..recorded };
        recorder.record(Change::Write(&std::fs::read(&path).unwrap(), 0));
        recorder.record(Change::Sync);
        let chain = open(&path, Mode::Write);
        chain.top().file.recorder.set(Arc::new(recorder.clone())).unwrap();
        let worker = worker(chain, kinds);
        Run { worker, recorder, clock, promises, waiting: Vec::new(), random: generator(seed) }
    }

    fn file(&self) -> Arc<ImageFile> {
        self.worker.chain.top().file.clone()
    }

    /// The tables are written, and what waits for that is answered.
    fn answer(&mut self) {
        self.worker.answer();
        for number in self.waiting.drain(..) {
            self.promises.answered(number, self.clock.now());
        }
    }

    fn sent(&mut self, kind: Kind, sectors: Range<u64>) -> Vec<u8> {
        if self.promises.is_in_flight(&sectors) {
            self.answer();
        }
        let number = self.promises.sent(kind, sectors, self.clock.now());
        self.waiting.push(number);
        if kind == Kind::Write { self.promises.data(number) } else { Vec::new() }
    }

    fn flush(&mut self) {
        self.answer();
        let number = self.promises.sent(Kind::Flush, 0..0, self.clock.now());
        // By the ring: the image's thread does not know.
        lock(&self.recorder.0).is_guests = true;
        self.file().record(Change::Sync);
        lock(&self.recorder.0).is_guests = false;
        self.promises.answered(number, self.clock.now());
    }

    fn write(&mut self, sectors: Range<u64>) {
        let bytes = sectors.start * 512..sectors.end * 512;
        let data = self.sent(Kind::Write, sectors);
        let found = self.worker.chain.find(0, bytes.start, bytes.end - bytes.start).unwrap();
        if let (Found::At { offset, writable: true, .. }, true) = (found.0, found.1 == data.len() as u64)
            && self.waiting.len() == 1
        {
            // By the ring, too.
            self.file().file().write_all_at(&data, offset).unwrap();
            return self.file().record(Change::Write(&data, offset));
        }
        self.worker.write_data(0, &Data::Bytes(&data, bytes.start), bytes).unwrap();
    }

    fn step(&mut self, cluster: u64) {
        let len = match self.random.random_range(0..4) {
            0 => self.random.random_range(1..=64),
            _ => self.random.random_range(1..=16),
        };
        let start = self.random.random_range(0..=SECTORS - len);
        let sectors = start..start + len;
        match self.random.random_range(0..16) {
            0 => self.flush(),
            1..5 => self.answer(),
            5 => {
                let whole =
                    start.next_multiple_of(cluster)..(start + 4 * len).min(SECTORS) / cluster * cluster;
                if whole.start < whole.end {
                    self.answer();
                    self.sent(Kind::Discard, whole.clone());
                    self.worker.discard(whole.start * 512..whole.end * 512, false).unwrap();
                }
            }
            6 => {
                self.answer();
                self.sent(Kind::Discard, sectors.clone());
                self.worker.discard(sectors.start * 512..sectors.end * 512, true).unwrap();
            }
            _ => self.write(sectors),
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks a file by QEMU: leaks alone.
fn check(path: &Path) -> Result<(), String> {
    let output = Command::new("qemu-img").args(["check", "-U", "-f", "qcow2"]).arg(path).output().unwrap();
    match output.status.code() {
        // 3: leaks alone (qemu-img(1)).
        Some(0 | 3) => Ok(()),
        _ => Err(text(&output)),
    }
}

/// What a disk holds.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = vec![0; SECTORS as usize * 512];
    open(path, Mode::Read).read(0, &mut content, 0).map_err(|error| error.to_string())?;
    Ok(content)
}

/// Opens an image whose power was cut, writes to it, and closes it: what it held stays, and there are leaks at most.
fn write_again(path: &Path, kinds: Kinds, mut held: Vec<u8>) -> Result<(), String> {
    let mut worker = worker(open(path, Mode::Write), kinds);
    let range = held.len() / 3 / 512 * 512..held.len() / 2 / 512 * 512;
    let data = testkit::random::bytes(1, range.len());
    let start = range.start as u64;
    let bytes = start..range.end as u64;
    worker.write_data(0, &Data::Bytes(&data, start), bytes).map_err(|error| error.to_string())?;
    close(worker);
    check(path)?;
    held[range].copy_from_slice(&data);
    if content(path)? == held { Ok(()) } else { Err("what it held is not there after another write".into()) }
}

/// An image, what was done to it, and what was promised.
struct Done {
    directory: tempfile::TempDir,
    recorder: Recorder,
    promises: Promises,
    kinds: Kinds,
    end: u64,
}

fn run(kinds: Kinds, seed: u64) -> Done {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut run = Run::start(directory.path(), kinds, seed);
    (0..OPERATIONS).for_each(|_| run.step((1 << kinds.cluster_bits) / 512));
    run.answer();
    let Run { worker, recorder, clock, promises, .. } = run;
    close(worker);
    let end = clock.now();
    assert_eq!(check_clean(&directory.path().join("image")), "");
    let mut recorded = lock(&recorder.0);
    recorded.log.sectors = recorded.lengths.iter().map(|(_, length)| length.div_ceil(512)).max().unwrap_or(0);
    Done { directory, recorder: recorder.clone(), promises, kinds, end }
}

/// What QEMU finds of an image that was closed: no leaks either.
fn check_clean(path: &Path) -> String {
    let output = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(path).output().unwrap();
    text(&output)
}

/// Makes a file, in which zeroes are holes.
fn write_with_holes(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, part) in bytes.chunks(4096).enumerate() {
        if part.iter().any(|byte| *byte != 0) {
            file.write_all_at(part, number as u64 * 4096).unwrap();
        }
    }
}

/// Cuts the power at moments that the seed says.
///
/// # Errors
/// That of the first image that is not as it has to be.
fn cut(done: &Done, recorded: &Recorded, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let path = done.directory.path().join("cut");
    for number in 0..CUTS {
        let at = random.random_range(0..done.end).max(recorded.log.operations[1].completed.unwrap() + 1);
        let choice = Choice::EVERY[number % 4];
        write_with_holes(&path, &recorded.file(at, choice, &mut random));
        let checked = check(&path).and_then(|()| {
            let content = content(&path)?;
            if choice == Choice::All {
                done.promises.check_killed(at, &content)?;
            }
            done.promises.check(at, &content)?;
            write_again(&path, done.kinds, content)
        });
        checked.map_err(|why| format!("{why} (a cut at {at} of {}, {choice:?})", done.end))?;
    }
    Ok(())
}

/// Images with and without one below, of clusters as small as sectors and larger than file systems' blocks.
const EVERY: [Kinds; 4] = [
    Kinds { cluster_bits: 9, has_backing: false },
    Kinds { cluster_bits: 12, has_backing: true },
    Kinds { cluster_bits: 13, has_backing: false },
    Kinds { cluster_bits: 16, has_backing: true },
];

fn seeds() -> Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("XPV_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("XPV_TEST_SEED={first}");
    first..first + number("XPV_POWER_CUTS").unwrap_or(1)
}

#[test]
fn image_whose_power_is_cut_has_leaks_at_most_and_what_was_flushed() {
    for seed in seeds() {
        let one = |kinds: Kinds| {
            let done = run(kinds, seed);
            let recorded = lock(&done.recorder.0).clone();
            cut(&done, &recorded, seed).unwrap_or_else(|why| panic!("{why}: seed {seed}, {kinds:?}"));
        };
        // A scope panics where one of its threads does.
        std::thread::scope(|scope| EVERY.map(|kinds| scope.spawn(move || one(kinds))).map(drop));
    }
}

#[test]
fn image_that_never_synchronizes_is_found() {
    let is_found = (1..20).any(|seed| {
        let done = run(EVERY[(seed % 4) as usize], seed);
        let recorded = done.recorder.clone().without_own_syncs();
        cut(&done, &recorded, seed).is_err()
    });
    assert!(is_found);
}

#[test]
fn what_a_killed_process_had_reserved_is_free_when_its_image_is_opened_again() {
    for kinds in EVERY {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut run = Run::start(directory.path(), kinds, 1);
        for start in [0, 512, 1024] {
            run.write(start..start + 8);
            run.answer();
        }
        let killed = directory.path().join("image");
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        let used = run.file().length();
        drop(run);
        assert!(length(&killed) > used, "{kinds:?}");
        assert_ne!(check_clean(&killed), "", "{kinds:?}");
        let held = content(&killed).unwrap();
        close(worker(open(&killed, Mode::Write), kinds));
        assert_eq!((check_clean(&killed), length(&killed)), (String::new(), used), "{kinds:?}");
        assert!(content(&killed).unwrap() == held);
    }
}
