//! A disk in memory that logs what it is given, and completes it late and in another order than it was submitted.

use super::clock::Clock;
use super::log::{Change, Logged, WriteLog};
use blkback::engine::{Completion, IoRequest, Operation, RamDisk};
use blkback::{DiscardLimits, Disk, DiskInfo, Engine};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// The disk. Every engine of it logs to one [`WriteLog`]. Its flushes write nothing: what they cover is in the log.
#[derive(Clone)]
pub struct LoggedDisk {
    ram: RamDisk,
    clock: Clock,
    log: Arc<Mutex<WriteLog>>,
    seed: u64,
}

impl LoggedDisk {
    /// A disk of so many sectors, all zeroes, that offers discard.
    pub fn new(sectors: u64, clock: Clock, seed: u64) -> LoggedDisk {
        let discard = Some(DiscardLimits { granularity: 512, alignment: 0 });
        let ram = RamDisk::new(DiskInfo { discard, ..DiskInfo::new(sectors) }).unwrap();
        let log = WriteLog { sectors, operations: Vec::new() };
        LoggedDisk { ram, clock, log: Arc::new(Mutex::new(log)), seed }
    }

    /// What was logged until now.
    pub fn log(&self) -> WriteLog {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, WriteLog> {
        self.log.lock().expect("no panic while it is held")
    }
}

impl Disk for LoggedDisk {
    fn name(&self) -> String {
        "logged".into()
    }

    fn info(&self) -> Result<DiskInfo> {
        self.ram.info()
    }

    fn engine(&self, depth: usize) -> Result<Box<dyn Engine>> {
        Ok(Box::new(LoggedEngine {
            disk: self.clone(),
            engine: self.ram.engine(depth)?,
            numbers: vec![None; depth],
            completed: Vec::new(),
            has_completed: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            random: SmallRng::seed_from_u64(self.seed),
        }))
    }
}

struct LoggedEngine {
    disk: LoggedDisk,
    engine: Box<dyn Engine>,
    /// By tag: the number of the operation in the log.
    numbers: Vec<Option<usize>>,
    /// Operations that are complete and not handed back, while there are any of which the descriptor is readable.
    completed: Vec<Completion>,
    has_completed: EventFd,
    random: SmallRng,
}

fn change(request: &IoRequest) -> Option<Change> {
    let sector = request.sector();
    Some(match request.operation() {
        Operation::Read => return None,
        Operation::Flush => Change::Flush,
        Operation::Discard => Change::Discard(sector..sector + request.len() as u64 / 512),
        Operation::Write => {
            let mut data = Vec::with_capacity(request.len());
            for slice in request.slices() {
                let mut bytes = vec![0; slice.len()];
                slice.copy_to(&mut bytes[..]);
                data.extend(bytes);
            }
            Change::Write { sector, data }
        }
    })
}

impl Engine for LoggedEngine {
    fn submit(&mut self, requests: &mut Vec<IoRequest>) {
        for request in requests.iter() {
            self.numbers[request.tag().0 as usize] = change(request).map(|change| {
                let mut log = self.disk.lock();
                log.operations.push(Logged { change, submitted: self.disk.clock.now(), completed: None });
                log.operations.len() - 1
            });
        }
        self.engine.submit(requests);
    }

    /// Hands back one at least of those that are complete.
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        let was_empty = self.completed.is_empty();
        self.engine.poll(&mut self.completed)?;
        if self.completed.is_empty() {
            return Ok(());
        }
        self.completed.shuffle(&mut self.random);
        let kept = self.random.random_range(0..self.completed.len());
        for completion in self.completed.drain(kept..) {
            let number = self.numbers[completion.request.tag().0 as usize];
            if let Some(number) = number.filter(|_| completion.result.is_ok()) {
                self.disk.lock().operations[number].completed = Some(self.disk.clock.now());
            }
            completions.push(completion);
        }
        match (was_empty, self.completed.is_empty()) {
            (true, false) => drop(self.has_completed.write(1)?),
            (false, true) => drop(self.has_completed.read()?),
            _ => {}
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.has_completed.as_fd()
    }
}
