//! A qcow2 image with any bytes in it: it is refused, or its operations fail or succeed; none panics or does not end, and no more than
//! 64 MiB are taken for it.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use blkback::Disk;
use blkback::engine::format::NewImage;
use blkback::engine::{IoTable, Mode, Operation, Spec, Tag, open, spec::Source};
use vm_memory::{MmapRegion, VolatileMemory};

const MOST: usize = 64 << 20;

/// Counts what is allocated.
struct Counted;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with the same arguments.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(taken, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// An operation: its kind, its sector, and how many sectors it has.
fn run(disk: &dyn Disk, operations: &[(u8, u16, u8)]) {
    let Ok(mut engine) = disk.engine(1) else { return };
    let sectors = disk.info().unwrap().sectors;
    let mut table = IoTable::new(1, || MmapRegion::<()>::new(256 * 512).unwrap());
    for (kind, sector, count) in operations {
        let sector = u64::from(*sector) % sectors;
        let bytes = (u64::from(*count).min(sectors - sector) * 512) as usize;
        let operation =
            [Operation::Read, Operation::Write, Operation::Discard, Operation::Flush][usize::from(kind % 4)];
        let request = table.start(Tag(0), operation, sector, |memory, slices| match operation {
            Operation::Flush => true,
            Operation::Discard => {
                slices.cover(bytes);
                true
            }
            Operation::Read | Operation::Write => slices.push(memory.get_slice(0, bytes).unwrap()),
        });
        engine.submit(&mut vec![request.unwrap()]);
        let mut completions = Vec::new();
        while completions.is_empty() {
            engine.poll(&mut completions).unwrap();
            std::thread::yield_now();
        }
        for done in completions {
            table.finish(done.request);
        }
    }
}

/// The size of clusters, whether the disk is written to, bytes of the image that are replaced, and operations.
type Input = (u8, bool, Vec<(u16, Vec<u8>)>, Vec<(u8, u16, u8)>);

libfuzzer_sys::fuzz_target!(|input: Input| {
    let (cluster_bits, writable, changes, operations) = input;
    let image = NewImage { size: 1 << 20, cluster_bits: 9 + u32::from(cluster_bits % 13), backing: None };
    let mut bytes = image.bytes().unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    for (at, change) in &changes {
        // Header and tables are at the starts of the first clusters.
        let at = (usize::from(*at >> 10) << (9 + cluster_bits % 13)) + usize::from(*at & 1023);
        let end = (at + change.len()).min(bytes.len());
        if at < end {
            bytes[at..end].copy_from_slice(&change[..end - at]);
        }
    }
    let path = format!("/dev/shm/xpv-fuzz-{}.qcow2", std::process::id());
    std::fs::write(&path, &bytes).unwrap();
    drop(bytes);
    let mode = if writable { Mode::Write } else { Mode::Read };
    let spec = Spec { source: Source::Qcow2(path.clone().into()), ..Spec::raw("/", mode) };
    let before = TAKEN.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    if let Ok(disk) = open(&spec) {
        run(&*disk, &operations[..operations.len().min(16)]);
    }
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(peak <= MOST, "{peak} bytes");
    std::fs::remove_file(&path).unwrap();
});
