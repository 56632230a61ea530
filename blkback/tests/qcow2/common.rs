//! What the tests of qcow2 images share: a ring's worth of operations on a disk without a guest, and QEMU's tools.
#![allow(dead_code)] // Each test uses a part of it.

use blkback::engine::{BaseCache, Completion, Engine, IoTable, Operation, Spec, Tag};
use blkback::{Disk, engine};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use xenbus::Keys;

/// Bytes of one operation at most.
pub(crate) const MAX: usize = 1 << 20;

/// One engine of a disk, by which operations are carried out one after the other or several at once.
pub(crate) struct Ring {
    engine: Box<dyn Engine>,
    table: IoTable<MmapRegion>,
}

impl Ring {
    pub(crate) fn new(disk: &dyn Disk) -> Ring {
        let engine = disk.engine(8).unwrap();
        Ring { engine, table: IoTable::new(8, || MmapRegion::new(MAX).unwrap()) }
    }

    /// Carries out one operation, and waits for it.
    pub(crate) fn run(&mut self, operation: Operation, sector: u64, bytes: usize) -> io::Result<()> {
        let request = self.table.start(Tag(0), operation, sector, |memory, slices| {
            if operation == Operation::Discard {
                slices.cover(bytes);
            } else if bytes > 0 {
                // In two slices, of which one has an odd length.
                let first = bytes / 3 / 512 * 512;
                return slices.push(memory.get_slice(0, first).unwrap())
                    && slices.push(memory.get_slice(first, bytes - first).unwrap());
            }
            true
        });
        self.engine.submit(&mut vec![request.unwrap()]);
        let mut completions = Vec::new();
        while completions.is_empty() {
            self.engine.poll(&mut completions).unwrap();
            let mut dropped = Vec::new();
            self.table.reclaim(&mut dropped);
            assert!(dropped.is_empty(), "the image's thread has ended");
            std::thread::yield_now();
        }
        let Completion { request, result } = completions.remove(0);
        self.table.finish(request);
        result
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<()> {
        self.table.memory_mut(Tag(0)).as_volatile_slice().write_slice(data, 0).unwrap();
        self.run(Operation::Write, sector, data.len())
    }

    pub(crate) fn read(&mut self, sector: u64, bytes: usize) -> io::Result<Vec<u8>> {
        // What a read leaves out is seen.
        self.table.memory_mut(Tag(0)).as_volatile_slice().write_slice(&vec![0xa5; bytes], 0).unwrap();
        self.run(Operation::Read, sector, bytes)?;
        let mut data = vec![0; bytes];
        self.table.memory_mut(Tag(0)).as_volatile_slice().read_slice(&mut data, 0).unwrap();
        Ok(data)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.run(Operation::Flush, 0, 0)
    }

    pub(crate) fn discard(&mut self, sector: u64, bytes: usize) -> io::Result<()> {
        self.run(Operation::Discard, sector, bytes)
    }

    /// All of the disk.
    pub(crate) fn read_all(&mut self, disk: &dyn Disk) -> Vec<u8> {
        let sectors = disk.info().unwrap().sectors;
        let part = MAX as u64 / 512;
        let parts = (0..sectors).step_by(part as usize);
        parts.flat_map(|at| self.read(at, ((sectors - at).min(part) * 512) as usize).unwrap()).collect()
    }
}

/// Opens an image by its keys.
pub(crate) fn open_as(params: &str, mode: &str) -> Result<Arc<dyn Disk>, String> {
    let keys = Keys::new("/b").with("params", params).with("mode", mode);
    engine::open(&Spec::from_keys(&keys).unwrap()).map_err(|error| error.to_string())
}

/// Opens an image over others, which a cache is used for.
pub(crate) fn open_cached(image: &Path, cache: &BaseCache) -> Arc<dyn Disk> {
    let keys = Keys::new("/b").with("params", format!("qcow2:{}", image.display())).with("mode", "w");
    engine::open_with(&Spec::from_keys(&keys).unwrap(), cache).unwrap()
}

pub(crate) fn open(image: &Path) -> Arc<dyn Disk> {
    open_once_closed(image, "w").unwrap()
}

/// Opens an image that was closed a moment ago, which the closing thread may have still.
pub(crate) fn open_once_closed(image: &Path, mode: &str) -> Result<Arc<dyn Disk>, String> {
    let start = std::time::Instant::now();
    loop {
        match open_as(&format!("qcow2:{}", image.display()), mode) {
            Err(error) if error.contains("in use") && start.elapsed() < testkit::BOUND => {
                std::thread::yield_now();
            }
            opened => return opened,
        }
    }
}

/// Runs a tool of QEMU's; what was closed a moment ago is waited for. Returns what it prints.
fn run_qemu(arguments: &[&str]) -> (std::process::ExitStatus, String) {
    let start = std::time::Instant::now();
    loop {
        let output = Command::new(arguments[0]).args(&arguments[1..]).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", arguments[0]));
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if !text.contains("\" lock") || start.elapsed() > testkit::BOUND {
            return (output.status, text.into_owned());
        }
    }
}

/// Runs a tool of QEMU's, which must succeed; returns what it prints.
pub(crate) fn qemu(arguments: &[&str]) -> String {
    let (status, text) = run_qemu(arguments);
    assert!(status.success(), "{arguments:?}: {text}");
    text
}

/// Makes an image with these options of `qemu-img create`.
pub(crate) fn create(image: &Path, size: &str, options: &[&str]) {
    let image = image.to_str().unwrap();
    qemu(&[&["qemu-img", "create", "-q", "-f", "qcow2"], options, &[image, size]].concat());
}

/// Checks an image by QEMU, which must find neither errors nor leaks.
pub(crate) fn check(image: &Path) {
    qemu(&["qemu-img", "check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
}

/// Checks an image of which a process was killed: there may be leaks, but no errors.
pub(crate) fn check_killed(image: &Path) {
    let (status, text) = run_qemu(&["qemu-img", "check", "-f", "qcow2", image.to_str().unwrap()]);
    // 3: leaks alone (qemu-img(1)).
    assert!(matches!(status.code(), Some(0 | 3)), "{status:?}: {text}");
}

/// What QEMU reads of an image.
pub(crate) fn content(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("content");
    qemu(&[
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        image.to_str().unwrap(),
        raw.to_str().unwrap(),
    ]);
    let content = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    content
}

/// Bytes that tell where they are.
pub(crate) fn pattern(sectors: std::ops::Range<u64>, seed: u64) -> Vec<u8> {
    sectors.flat_map(|sector| (sector << 20 | seed).to_le_bytes().repeat(64)).collect()
}

pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    /// In memory, where a synchronization takes no time, and nothing bypasses the page cache.
    pub(crate) fn in_memory() -> Dir {
        Dir(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
