//! What blocks of different sizes cost the cache of base images: reads a second of a base that nobody has read, and of one that is in memory,
//! by one engine without a guest.
//!
//! `cargo run --release -p benches --example base_cache_blocks -- DIRECTORY` makes a base of 512 MiB there.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkback::Disk;
use blkback::engine::{BaseCache, Engine, IoTable, Operation, Spec, Tag, open_with};
use vm_memory::{MmapRegion, VolatileMemory};
use xenbus::Keys;

/// Sectors of the base.
const SECTORS: u64 = 512 << 11;
const ROUNDS: u64 = 5;
/// Bytes of a large read.
const LARGE: usize = 128 << 10;

/// A disk without a guest.
struct Ring {
    engine: Box<dyn Engine>,
    table: IoTable<MmapRegion>,
}

impl Ring {
    fn new(disk: &dyn Disk) -> Ring {
        let memory = || MmapRegion::new(LARGE).expect("memory");
        Ring { engine: disk.engine(32).expect("an engine"), table: IoTable::new(32, memory) }
    }

    fn submit(&mut self, tag: Tag, sector: u64, bytes: usize) {
        let read = self.table.start(tag, Operation::Read, sector, |memory, slices| {
            slices.push(memory.get_slice(0, bytes).expect("a part"))
        });
        self.engine.submit(&mut read.into_iter().collect());
    }

    /// Makes so many reads, `depth` at once; reads a second.
    fn run(&mut self, depth: u64, bytes: usize, count: u64, next: &mut dyn FnMut() -> u64) -> f64 {
        let start = Instant::now();
        (0..depth).for_each(|tag| self.submit(Tag(tag as u32), next(), bytes));
        let (mut started, mut done, mut completions) = (depth, 0, Vec::new());
        while done < count {
            self.engine.poll(&mut completions).expect("an engine that works");
            for completion in completions.drain(..) {
                completion.result.expect("a read");
                done += 1;
                let tag = self.table.finish(completion.request);
                if started < count {
                    started += 1;
                    self.submit(tag, next(), bytes);
                }
            }
        }
        count as f64 / start.elapsed().as_secs_f64()
    }
}

/// Opens the overlay, which was closed a moment ago.
fn open(directory: &str, cache: &BaseCache) -> Arc<dyn Disk> {
    let keys = Keys::new("/b").with("params", format!("qcow2:{directory}/overlay.qcow2")).with("mode", "w");
    let spec = Spec::from_keys(&keys).expect("keys of a disk");
    let start = Instant::now();
    loop {
        match open_with(&spec, cache) {
            Ok(disk) => return disk,
            Err(error) if start.elapsed() > Duration::from_secs(10) => panic!("{error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn make_images(directory: &str) {
    let make = format!(
        "cd {directory} && head -c {} /dev/urandom >base.img && sync base.img && \
         qemu-img create -q -f qcow2 -F raw -b base.img overlay.qcow2",
        SECTORS * 512
    );
    let status = Command::new("sh").args(["-c", &make]).status().expect("a shell");
    assert!(status.success(), "{make}: {status}");
}

/// One line: with blocks of 2 to the power of `bits` bytes, or without a cache.
fn measure(directory: &str, bits: Option<u32>, state: &mut u64) {
    let cache = || match bits {
        Some(bits) => BaseCache::with_blocks(1 << 30, bits).expect("memory"),
        None => BaseCache::default(),
    };
    let mut random = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % (SECTORS / 8) * 8
    };
    let cold = Ring::new(&*open(directory, &cache())).run(32, 4096, 6000, &mut random);
    let cold_one = Ring::new(&*open(directory, &cache())).run(1, 4096, 2000, &mut random);
    let disk = open(directory, &cache());
    let mut ring = Ring::new(&*disk);
    let large = LARGE as u64 / 512;
    let mut blocks = (0..SECTORS / large).cycle().map(|block| block * large);
    let mut next = || blocks.next().unwrap_or_default();
    let [cold_large, warm_large] = [(); 2].map(|()| ring.run(4, LARGE, SECTORS / large, &mut next) / 8.0);
    let warm = ring.run(32, 4096, 200_000, &mut random);
    let size = bits.map_or("none".to_owned(), |bits| format!("{} KiB", (1 << bits) >> 10));
    println!(
        "{size:>7}: cold: 4 KiB, depth 32 {cold:6.0}/s, depth 1 {cold_one:6.0}/s; 128 KiB {cold_large:5.0} MiB/s; \
         warm: 4 KiB {warm:7.0}/s, 128 KiB {warm_large:5.0} MiB/s"
    );
}

fn main() {
    let directory = std::env::args().nth(1).unwrap_or_else(|| panic!("expected a directory for 512 MiB"));
    assert!(Path::new(&directory).is_dir(), "found {directory}, expected a directory");
    make_images(&directory);
    let mut state = 88_172_645_463_325_252;
    for _ in 0..ROUNDS {
        for bits in [None, Some(14), Some(15), Some(16)] {
            measure(&directory, bits, &mut state);
        }
    }
}
