//! Every engine, compared with `ram` by one suite; and the errors of opening disks.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use blkback::DiskInfo;
use blkback::engine::{
    Completion, Data, Disk, Engine, FileDisk, IoRequest, Mode, Operation, RamDisk, Spec, open,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

const SECTORS: u64 = 256;

#[derive(Clone, Debug)]
struct Step {
    operation: Operation,
    sector: u64,
    sectors: u64,
    fill: u8,
    /// Submitted while the step before is in flight.
    together: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let operation =
        prop_oneof![4 => Just(Operation::Read), 4 => Just(Operation::Write), 1 => Just(Operation::Flush)];
    (operation, 0..SECTORS, 1..64u64, any::<u8>(), any::<bool>()).prop_map(
        |(operation, sector, sectors, fill, together)| Step {
            operation,
            sector,
            sectors: sectors.min(SECTORS - sector),
            fill,
            together,
        },
    )
}

fn io(tag: u64, step: &Step) -> Box<IoRequest> {
    if step.operation == Operation::Flush {
        return IoRequest::flush(tag);
    }
    let pages = MmapRegion::new(step.sectors as usize * 512).unwrap();
    let bytes = vec![step.fill; pages.len()];
    pages.as_volatile_slice().copy_from(&bytes);
    IoRequest::private(tag, step.operation, step.sector, pages)
}

/// Polls until `count` operations have completed, sleeping on the engine's descriptor in between.
fn wait(engine: &mut dyn Engine, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    loop {
        engine.poll(&mut done).unwrap();
        if done.len() >= count {
            return done;
        }
        let mut fds = [PollFd::new(engine.fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(20_000u16));
        assert!(!matches!(ready, Ok(0)), "timed out: {} of {count}", done.len());
    }
}

fn bytes(completion: Completion) -> Vec<u8> {
    let Data::Private(region) = completion.request.into_data() else { return Vec::new() };
    let mut bytes = vec![0; region.len()];
    region.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// The bytes of each operation after it completed, and finally those of the whole disk.
fn outcome(disk: &dyn Disk, steps: &[Step]) -> (BTreeMap<u64, Vec<u8>>, Vec<u8>) {
    let mut engine = disk.engine(8).unwrap();
    let mut results = BTreeMap::new();
    let mut in_flight = 0;
    let mut busy: Vec<std::ops::Range<u64>> = Vec::new();
    for (tag, step) in steps.iter().enumerate() {
        let range = step.sector..step.sector + step.sectors;
        let apart = busy.iter().all(|b| b.end <= range.start || range.end <= b.start);
        if !(step.together && apart && in_flight < 8) {
            results.extend(wait(&mut *engine, in_flight).into_iter().map(|d| (d.request.tag, bytes(d))));
            in_flight = 0;
            busy = Vec::new();
        }
        engine.submit(io(tag as u64, step)).map_err(|_| "full").unwrap();
        in_flight += 1;
        busy.push(range);
    }
    results.extend(wait(&mut *engine, in_flight).into_iter().map(|d| (d.request.tag, bytes(d))));
    let all = Step { operation: Operation::Read, sector: 0, sectors: SECTORS, fill: 0, together: false };
    engine.submit(io(0, &all)).map_err(|_| "full").unwrap();
    let whole = wait(&mut *engine, 1).pop().unwrap();
    assert!(whole.result.is_ok());
    (results, bytes(whole))
}

fn ram() -> Arc<dyn Disk> {
    Arc::new(RamDisk::new(DiskInfo::new(SECTORS)).unwrap())
}

/// A raw image of zeroes in `dir`.
fn raw(dir: &Path, direct: bool) -> Arc<dyn Disk> {
    let path = dir.join(format!("{direct}.img"));
    std::fs::write(&path, vec![0; SECTORS as usize * 512]).unwrap();
    Arc::new(FileDisk::open(&path, Mode::Write, direct).unwrap())
}

fn agrees_with_ram(make: impl Fn(&Path) -> Arc<dyn Disk>) {
    let dir = tempfile::tempdir().unwrap();
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(any_step(), 1..40))| {
        prop_assert_eq!(outcome(&*ram(), &steps), outcome(&*make(dir.path()), &steps));
    });
}

#[test]
fn ram_passes_the_engine_suite() {
    agrees_with_ram(|_| ram());
}

#[test]
fn uring_through_the_page_cache_agrees_with_ram() {
    agrees_with_ram(|dir| raw(dir, false));
}

#[test]
fn uring_with_o_direct_agrees_with_ram() {
    agrees_with_ram(|dir| raw(dir, true));
}

#[test]
fn read_beyond_truncated_image_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let disk = raw(dir.path(), false);
    let mut engine = disk.engine(4).unwrap();
    std::fs::File::options().write(true).open(dir.path().join("false.img")).unwrap().set_len(1024).unwrap();
    assert_eq!(disk.info().unwrap().sectors, 2);
    for (sector, ok) in [(0, true), (1, false), (100, false)] {
        let step = Step { operation: Operation::Read, sector, sectors: 2, fill: 9, together: false };
        engine.submit(io(sector, &step)).map_err(|_| "full").unwrap();
        assert_eq!(wait(&mut *engine, 1)[0].result.is_ok(), ok, "sector {sector}");
    }
}

#[test]
fn full_engine_gives_the_operation_back_and_waits_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = raw(dir.path(), true).engine(2).unwrap();
    let step = Step { operation: Operation::Read, sector: 0, sectors: 8, fill: 0, together: false };
    assert!(engine.submit(io(1, &step)).is_ok() && engine.submit(io(2, &step)).is_ok());
    assert_eq!(engine.submit(io(3, &step)).unwrap_err().tag, 3);
    // Two operations are still in the kernel: dropping waits for them.
    drop(engine);
}

#[test]
fn open_errors_name_the_file_and_what_was_found_and_expected() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let refusal = |name: &str, mode| open(&Spec::raw(path(name), mode)).map(|_| ()).unwrap_err().to_string();
    std::fs::write(path("odd"), [0; 1000]).unwrap();
    std::fs::write(path("empty"), []).unwrap();
    std::fs::write(path("good"), [0; 1024]).unwrap();
    for (name, text) in [
        ("none", "No such file"),
        (".", "found a directory, expected a regular file or a block device"),
        ("odd", "found 1000 bytes, expected a multiple of 512 above 0"),
        ("empty", "found 0 bytes"),
    ] {
        let error = refusal(name, Mode::Read);
        let file = path(name).display().to_string();
        assert!(error.starts_with("params: ") && error.contains(&file) && error.contains(text), "{error}");
    }
    let first = open(&Spec::raw(path("good"), Mode::Write)).unwrap();
    assert!(refusal("good", Mode::Write).contains("in use by another disk"));
    assert!(refusal("good", Mode::Read).contains("in use by another disk"));
    assert!(open(&Spec::raw(path("good"), Mode::WriteShared)).is_ok());
    drop(first);
    let readers = [(), ()].map(|()| open(&Spec::raw(path("good"), Mode::Read)).unwrap());
    assert!(readers[0].info().unwrap().read_only);
}

#[test]
fn open_read_only_file_for_writing_is_refused() {
    if nix::unistd::Uid::effective().is_root() {
        // Root may write to read-only files, except for the kernel's own.
        let error = open(&Spec::raw("/proc/version", Mode::Write)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("/proc/version"), "{error}");
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o400)).unwrap();
    let error = open(&Spec::raw(file.path(), Mode::Write)).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("mode: ") && error.contains("may only be read"), "{error}");
}
