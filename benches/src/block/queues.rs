//! Row B7: two queues of a disk, both ends of each on a core of their own, beside one queue with both ends on one core.
//!
//! Each queue's frontend is a thread that writes its ring itself, as each processor of a guest does, and yields while there is
//! nothing to do; the backend's thread of the queue is bound to the same core.

use super::{DEPTH, NULL, PAIRS, TIME};
use crate::cores;
use crate::row::{Goal, Row, interleave};
use crate::sample::{Sample, settled};
use blkback::{Tuning, VbdDriver};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ring_abi::DomId;
use ring_abi::blkif::{OP_READ, X86_64};
use std::fs;
use std::time::{Duration, Instant};
use testkit::FrontendDevice;
use testkit::block::{Backend, GUEST, RawFrontend, XVDA};

/// Requests of a ring of one page.
const _: () = assert!(DEPTH == 32);
/// Blocks of 4 KiB of the disk: 100 GiB.
const BLOCKS: u64 = 107_374_182_400 / 4096;

/// A machine whose disk has so many queues.
struct Queues {
    queues: Vec<RawFrontend<X86_64>>,
    cores: Vec<usize>,
    _backend: Backend,
    _machine: testkit::Machine,
}

/// Row B7.
///
/// # Errors
/// There is one processor alone, or the machine does not come up.
pub fn b7() -> Result<Row, String> {
    let [first, second] = cores::two()?;
    let mut two = Queues::new(&[first, second])?;
    let mut one = Queues::new(&[first])?;
    let pairs = interleave(PAIRS, || two.run(), || one.run());
    let what =
        "4 KiB random read, null engine, depth 32 a queue: two queues, each on a core; one queue on one core";
    Ok(Row::new("B7", what, "M IOPS", Goal::AtLeast(1.8), &pairs))
}

/// Our side of B7: two queues.
///
/// # Errors
/// As [`b7`].
pub fn b7_once() -> Result<Sample, String> {
    let mut two = Queues::new(&cores::two()?)?;
    Ok(Sample::single("M IOPS", settled(1, || two.run())))
}

impl Queues {
    fn new(cores: &[usize]) -> Result<Queues, String> {
        let machine = testkit::Machine::without_log();
        let device = machine.attach_disk(GUEST, XVDA, NULL);
        let dom0 = machine.domain(DomId::DOM0);
        let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
        // Both ends are on one core: whoever polled would keep the other from it.
        driver.set_tuning(Tuning { busy_poll: Duration::ZERO, batch: DEPTH, ..Tuning::default() });
        driver.set_max_queues(cores.len() as u32);
        let before = threads()?;
        let backend = Backend::start_with(driver, &dom0);
        let device = FrontendDevice::new(machine.domain(GUEST), device);
        let queues = match cores {
            [_] => vec![RawFrontend::connect(device, "x86_64-abi", false)],
            _ => RawFrontend::connect_queues(&device, "x86_64-abi", cores.len()),
        };
        let new: Vec<i32> = threads()?.into_iter().filter(|thread| !before.contains(thread)).collect();
        if new.len() != cores.len() {
            return Err(format!("{} threads serve {} queues", new.len(), cores.len()));
        }
        for (thread, core) in new.into_iter().zip(cores) {
            let mut set = CpuSet::new();
            let bound = set.set(*core).and_then(|()| sched_setaffinity(Pid::from_raw(thread), &set));
            bound.map_err(|e| format!("binding a thread to core {core}: {e}"))?;
        }
        Ok(Queues { queues, cores: cores.to_vec(), _backend: backend, _machine: machine })
    }

    /// Millions of reads a second of all queues.
    fn run(&mut self) -> f64 {
        std::thread::scope(|scope| {
            let queues = self.queues.iter_mut().zip(&self.cores).zip(1..);
            let threads: Vec<_> = queues
                .map(|((queue, core), seed)| {
                    scope.spawn(move || {
                        cores::pin(*core);
                        read(queue, seed)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<f64>() / 1e6
        })
    }
}

/// The threads of this process that serve a ring of the guest, in the order of their start.
fn threads() -> Result<Vec<i32>, String> {
    let failed = |e| format!("/proc/self/task: {e}");
    let name = format!("vbd-{GUEST}\n");
    let entries = fs::read_dir("/proc/self/task").map_err(failed)?.flatten();
    let serves =
        |path: std::path::PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
    let rings = entries.filter(|entry| serves(entry.path()));
    let mut threads: Vec<i32> = rings.filter_map(|ring| ring.file_name().to_str()?.parse().ok()).collect();
    threads.sort_unstable();
    Ok(threads)
}

/// Keeps reads of random blocks in flight for a time; reads a second.
///
/// # Panics
/// If the disk fails a request.
fn read(queue: &mut RawFrontend<X86_64>, seed: u64) -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut push = |queue: &mut RawFrontend<X86_64>, id: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let page = id as usize % queue.data.refs().len();
        let request = queue.io(OP_READ, id, state % BLOCKS * 8, &[page]);
        assert!(queue.ring.push(&request), "room in the ring");
    };
    (0..DEPTH as u64).for_each(|id| push(queue, id));
    queue.send(&[]);
    let start = Instant::now();
    let mut count = 0u64;
    let mut out = DEPTH;
    while out > 0 {
        let goes_on = start.elapsed() < TIME;
        let mut taken = 0;
        while let Some(response) = queue.ring.pop().expect("a sound ring") {
            assert_eq!(response.status, ring_abi::blkif::Status::OKAY, "the disk serves");
            taken += 1;
            if goes_on {
                push(queue, response.id);
            }
        }
        count += taken as u64;
        if !goes_on {
            out -= taken;
        }
        if taken == 0 {
            std::thread::yield_now();
        } else {
            queue.send(&[]);
        }
    }
    count as f64 / start.elapsed().as_secs_f64()
}
