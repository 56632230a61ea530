//! The cache of base images: what guests read through it, whatever is evicted, forgotten or fails meanwhile.

#[path = "qcow2/common.rs"]
mod common;

use blkback::Disk;
use blkback::engine::BaseCache;
use blkback::engine::base_cache::FileId;
use common::{Dir, Ring, check, create, open_cached, pattern};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use xenbus::stats;

/// Sectors of the bases, which do not end with a block.
const SECTORS: u64 = 4093;

/// A base with bytes that tell whose they are, and overlays over it.
struct Base {
    dir: Dir,
    seed: u64,
}

impl Base {
    fn new(seed: u64) -> Base {
        let dir = if seed.is_multiple_of(2) { Dir::in_memory() } else { Dir::new() };
        std::fs::write(dir.path("base"), pattern(0..SECTORS, seed)).unwrap();
        Base { dir, seed }
    }

    fn path(&self) -> PathBuf {
        self.dir.path("base")
    }

    fn content(&self) -> Vec<u8> {
        pattern(0..SECTORS, self.seed)
    }

    fn overlay(&self, name: &str, cache: &BaseCache) -> Arc<dyn Disk> {
        let image = self.dir.path(name);
        create(&image, &format!("{}", SECTORS * 512), &["-b", "base", "-F", "raw"]);
        open_cached(&image, cache)
    }
}

fn stats(disk: &dyn Disk) -> stats::BaseCache {
    disk.cache().and_then(|cache| cache.stats()).expect("a cache")
}

fn read(disk: &dyn Disk, sector: u64, bytes: usize) -> Vec<u8> {
    Ring::new(disk).read(sector, bytes).unwrap()
}

#[test]
fn readers_amid_eviction_read_their_own_bases_and_nothing_else() {
    // Blocks of a page, of which there are fewer than the rings want at once; others of more, enough, and none.
    for (bytes, bits) in [(3 << 12, 12), (20 << 12, 12), (5 << 15, 15), (1 << 30, 15), (0, 15)] {
        let cache = BaseCache::with_blocks(bytes, bits).unwrap();
        let bases = [Base::new(1), Base::new(2)];
        std::thread::scope(|scope| {
            for ring in 0..4u64 {
                let (cache, base) = (&cache, &bases[ring as usize % 2]);
                scope.spawn(move || {
                    let disk = base.overlay(&format!("{ring}"), cache);
                    let (mut ring_of, mut model) = (Ring::new(&*disk), base.content());
                    let mut random = SmallRng::seed_from_u64(bytes + ring);
                    for _ in 0..200 {
                        let at = random.random_range(0..SECTORS);
                        let sectors = random.random_range(1..=200.min(SECTORS - at));
                        let range = at as usize * 512..(at + sectors) as usize * 512;
                        if random.random_range(0..40) == 0 {
                            // What is copied up comes from the cache too.
                            let data = pattern(at..at + 1, 100 + ring);
                            ring_of.write(at, &data).unwrap();
                            model[range.start..range.start + 512].copy_from_slice(&data);
                        }
                        assert!(
                            ring_of.read(at, range.len()).unwrap() == model[range],
                            "ring {ring} at {at}"
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn hits_waits_and_misses_are_all_lookups_and_what_is_read_is_each_block_once() {
    let (base, cache) = (Base::new(1), BaseCache::new(64 << 20).unwrap());
    let disks: Vec<_> = (0..4).map(|number| base.overlay(&format!("{number}"), &cache)).collect();
    let barrier = Barrier::new(disks.len());
    std::thread::scope(|scope| {
        for disk in &disks {
            scope.spawn(|| {
                barrier.wait();
                assert!(Ring::new(&**disk).read_all(&**disk) == base.content());
            });
        }
    });
    let stats: Vec<_> = disks.iter().map(|disk| stats(&**disk)).collect();
    let blocks = (SECTORS * 512).div_ceil(32 << 10);
    // The last cluster of the disk ends within the last block: it is read by the image's thread.
    let lookups: u64 = stats.iter().map(|stats| stats.hits + stats.waits + stats.misses).sum();
    assert!(lookups >= blocks * 4, "{stats:?}");
    assert_eq!(stats.iter().map(|stats| stats.misses).sum::<u64>(), blocks, "{stats:?}");
    assert_eq!(stats.iter().map(|stats| stats.read_bytes).sum::<u64>(), SECTORS * 512, "{stats:?}");
    assert_eq!(stats[0].cached_bytes, blocks * (32 << 10));
    assert_eq!(stats[0].limit_bytes, 64 << 20);
}

#[test]
fn tables_and_compressed_clusters_of_a_base_are_read_once_too() {
    let (dir, cache) = (Dir::new(), BaseCache::new(64 << 20).unwrap());
    let content = pattern(0..4096, 3);
    std::fs::write(dir.path("raw"), &content).unwrap();
    let path = |name| dir.path(name).display().to_string();
    let convert = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", &path("raw"), &path("base")];
    common::qemu(&convert);
    let disks = ["a", "b"].map(|name| {
        create(&dir.path(name), "2M", &["-b", "base", "-F", "qcow2"]);
        open_cached(&dir.path(name), &cache)
    });
    for disk in &disks {
        assert!(Ring::new(&**disk).read_all(&**disk) == content);
    }
    let length = std::fs::metadata(dir.path("base")).unwrap().len();
    let read: u64 = disks.iter().map(|disk| stats(&**disk).read_bytes).sum();
    assert!(read <= length && stats(&*disks[1]).read_bytes == 0, "{read} of {length} bytes were read");
    drop(disks);
    check(&dir.path("base"));
}

#[test]
fn read_that_failed_is_not_cached_and_fails_no_other() {
    let (base, cache) = (Base::new(1), BaseCache::new(64 << 20).unwrap());
    let (one, other) = (base.overlay("a", &cache), base.overlay("b", &cache));
    let whole = base.content();
    assert!(read(&*one, 0, 512) == whole[..512]);
    // Within the fourth block of 32 KiB.
    let file = File::options().write(true).open(base.path()).unwrap();
    file.set_len(200 * 512).unwrap();
    for disk in [&one, &other] {
        assert!(Ring::new(&**disk).read(200, 512).is_err());
        assert!(Ring::new(&**disk).read(1000, 4096).is_err());
        // What is there of the same block is read.
        assert!(read(&**disk, 199, 512) == whole[199 * 512..200 * 512]);
    }
    file.write_all_at(&whole, 0).unwrap();
    for disk in [&one, &other] {
        assert!(read(&**disk, 200, 512) == whole[200 * 512..201 * 512]);
        assert!(read(&**disk, 1000, 4096) == whole[1000 * 512..1008 * 512]);
    }
}

#[test]
fn file_that_is_forgotten_is_read_anew_and_not_cached_until_that_ends() {
    let (base, cache) = (Base::new(1), BaseCache::new(64 << 20).unwrap());
    let (one, other) = (base.overlay("a", &cache), base.overlay("b", &cache));
    let file = File::options().read(true).write(true).open(base.path()).unwrap();
    let read = |seed| {
        let expected = pattern(0..8, seed);
        [&one, &other].map(|disk| read(&**disk, 0, 4096) == expected)
    };
    let write = |seed| file.write_all_at(&pattern(0..8, seed), 0).unwrap();
    assert_eq!(read(1), [true; 2]);
    write(3);
    assert_eq!(read(1), [true; 2], "it is cached");
    let forgotten = cache.forget(FileId::of(&file).unwrap());
    assert_eq!(stats(&*one).cached_bytes, 0);
    for seed in 4..6 {
        write(seed);
        assert_eq!(read(seed), [true; 2], "it is not cached");
    }
    drop(forgotten);
    assert_eq!(read(5), [true; 2]);
    write(6);
    assert_eq!(read(5), [true; 2], "it is cached again");
}

#[test]
fn blocks_of_a_file_that_no_disk_uses_any_more_are_gone() {
    let (base, cache) = (Base::new(1), BaseCache::new(64 << 20).unwrap());
    let used = || {
        let empty = Base::new(2);
        stats(&*empty.overlay("empty", &cache)).cached_bytes
    };
    let (one, other) = (base.overlay("a", &cache), base.overlay("b", &cache));
    read(&*one, 0, 1 << 20);
    drop(one);
    // Closing has a moment's time, and takes no longer here.
    assert_eq!((used(), read(&*other, 8, 4096)), (1 << 20, pattern(8..16, 1)));
    drop(other);
    assert_eq!(used(), 0);
    std::fs::write(base.path(), pattern(0..SECTORS, 9)).unwrap();
    assert!(read(&*base.overlay("c", &cache), 8, 4096) == pattern(8..16, 9));
}
