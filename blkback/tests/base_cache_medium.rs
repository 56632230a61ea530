//! 64 disks over one base read each block of it from the medium once: by the cache's own counters, and by the kernel's count of what this
//! process has read (`read_bytes` of proc_pid_io(5)). Therefore this is the only test of its process.

#[path = "qcow2/common.rs"]
mod common;

use blkback::engine::BaseCache;
use common::{Dir, Ring, create, open_cached, pattern};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::sync::Barrier;

const DISKS: usize = 64;
/// Bytes of the base, of which all disks read one half, and each a part of the other.
const BASE: u64 = 4 << 20;
const BLOCK: u64 = 32 << 10;

/// Bytes that this process has had the medium read.
fn read_by_the_kernel() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("task I/O accounting");
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("read_bytes");
    line.parse().expect("a number")
}

#[test]
fn blocks_of_a_base_that_64_disks_share_are_read_once() {
    let (dir, cache) = (Dir::new(), BaseCache::new(64 << 20).unwrap());
    let content = pattern(0..BASE / 512, 5);
    let file = std::fs::File::create(dir.path("base")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).unwrap();
    file.sync_all().unwrap();
    create(&dir.path("overlay"), &BASE.to_string(), &["-b", "base", "-F", "raw"]);
    let disks: Vec<_> = (0..DISKS)
        .map(|number| {
            let image = dir.path(&number.to_string());
            std::fs::copy(dir.path("overlay"), &image).unwrap();
            let disk = open_cached(&image, &cache);
            // The overlay's own tables are read now.
            Ring::new(&*disk).read(0, 512).unwrap();
            disk
        })
        .collect();
    let before = read_by_the_kernel();
    let barrier = Barrier::new(DISKS);
    std::thread::scope(|scope| {
        for (number, disk) in disks.iter().enumerate() {
            let (barrier, content) = (&barrier, &content);
            scope.spawn(move || {
                let mut ring = Ring::new(&**disk);
                barrier.wait();
                for at in (0..BASE / 2).step_by(64 << 10) {
                    let bytes = &content[at as usize..][..64 << 10];
                    assert!(ring.read(at / 512, bytes.len()).unwrap() == bytes, "disk {number} at {at}");
                }
                // One block that nobody else reads.
                let at = BASE / 2 + number as u64 * BLOCK;
                assert!(ring.read(at / 512, 4096).unwrap() == content[at as usize..][..4096]);
            });
        }
    });
    let read = read_by_the_kernel() - before;
    let stats =
        |disk: &std::sync::Arc<dyn blkback::Disk>| disk.cache().and_then(|cache| cache.stats()).unwrap();
    let touched = BASE / 2 + DISKS as u64 * BLOCK;
    let sum =
        |of: fn(&xenbus::stats::BaseCache) -> u64| disks.iter().map(|disk| of(&stats(disk))).sum::<u64>();
    assert_eq!(sum(|stats| stats.read_bytes), touched);
    assert_eq!(sum(|stats| stats.misses), touched / BLOCK);
    let lookups = DISKS as u64 * (BASE / 2 / BLOCK + 2);
    assert_eq!(sum(|stats| stats.hits + stats.waits + stats.misses), lookups);
    assert_eq!(stats(&disks[0]).cached_bytes, touched);
    if statfs(&dir.path("base")).is_ok_and(|statfs| statfs.filesystem_type() == TMPFS_MAGIC) {
        println!("the temporary files are in memory: what the kernel reads is not seen");
        return;
    }
    // The first block was read before. The file system may read where its blocks are.
    let expected = touched - BLOCK..=touched - BLOCK + (64 << 10);
    assert!(expected.contains(&read), "the kernel has read {read} bytes, expected {expected:?}");
}
