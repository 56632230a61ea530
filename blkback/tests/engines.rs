//! Every engine, compared with `ram` by one suite; and the errors of opening disks.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use blkback::DiskInfo;
use blkback::engine::{
    Disk, Engine, FileDisk, IoTable, Mode, OpenError, Operation, RamDisk, Spec, Tag, open,
};
use blkback::handshake::disk_keys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;
use testkit::BOUND;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use xenbus::Keys;

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
    let operation = prop_oneof![
        4 => Just(Operation::Read),
        4 => Just(Operation::Write),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Discard),
    ];
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

/// Operations at once.
const DEPTH: usize = 8;

/// An engine, and the memory of what it carries out.
struct Machine {
    engine: Box<dyn Engine>,
    table: IoTable<Option<MmapRegion>>,
    in_flight: usize,
}

impl Machine {
    fn new(disk: &dyn Disk) -> Machine {
        Machine { engine: disk.engine(DEPTH).unwrap(), table: IoTable::new(DEPTH, || None), in_flight: 0 }
    }

    fn submit(&mut self, tag: u32, step: &Step) {
        if matches!(step.operation, Operation::Read | Operation::Write) {
            let pages = MmapRegion::new(step.sectors as usize * 512).unwrap();
            pages.as_volatile_slice().copy_from(&vec![step.fill; pages.len()]);
            *self.table.memory_mut(Tag(tag)) = Some(pages);
        }
        let request = self.table.start(Tag(tag), step.operation, step.sector, |memory, slices| {
            if step.operation == Operation::Discard {
                slices.cover(step.sectors as usize * 512);
            }
            memory.as_ref().is_none_or(|pages| slices.push(pages.as_volatile_slice()))
        });
        self.engine.submit(&mut vec![request.unwrap()]);
        self.in_flight += 1;
    }

    /// Polls until all operations have completed, sleeping on the engine's descriptor in between. Returns the tag, the
    /// memory and whether it succeeded of each.
    fn wait(&mut self) -> Vec<(u32, Vec<u8>, bool)> {
        let mut completions = Vec::new();
        while completions.len() < self.in_flight {
            self.engine.poll(&mut completions).unwrap();
            if completions.len() < self.in_flight {
                let fds = [Some(self.engine.fd()), self.engine.discard_fd()].into_iter().flatten();
                let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                let ready = poll(&mut fds, PollTimeout::from(20_000u16));
                assert!(!matches!(ready, Ok(0)), "timed out: {} of {}", completions.len(), self.in_flight);
            }
        }
        self.in_flight = 0;
        completions
            .into_iter()
            .map(|completion| {
                let tag = self.table.finish(completion.request);
                let memory = self.table.memory_mut(tag).take();
                (tag.0, memory.as_ref().map(bytes).unwrap_or_default(), completion.result.is_ok())
            })
            .collect()
    }
}

fn bytes(region: &MmapRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    bytes
}

/// The bytes of each operation after it completed, and finally those of the whole disk.
fn outcome(disk: &dyn Disk, steps: &[Step]) -> (BTreeMap<usize, Vec<u8>>, Vec<u8>) {
    let mut machine = Machine::new(disk);
    let mut results = BTreeMap::new();
    let mut busy: Vec<(usize, std::ops::Range<u64>)> = Vec::new();
    let mut collect = |machine: &mut Machine, busy: &mut Vec<(usize, _)>| {
        for (tag, bytes, _) in machine.wait() {
            results.insert(busy[tag as usize].0, bytes);
        }
        busy.clear();
    };
    for (number, step) in steps.iter().enumerate() {
        let range = step.sector..step.sector + step.sectors;
        let apart = busy.iter().all(|(_, b)| b.end <= range.start || range.end <= b.start);
        if !(step.together && apart && busy.len() < DEPTH) {
            collect(&mut machine, &mut busy);
        }
        machine.submit(busy.len() as u32, step);
        busy.push((number, range));
    }
    collect(&mut machine, &mut busy);
    let all = Step { operation: Operation::Read, sector: 0, sectors: SECTORS, fill: 0, together: false };
    machine.submit(0, &all);
    let (_, whole, ok) = machine.wait().remove(0);
    assert!(ok);
    (results, whole)
}

fn ram() -> Arc<dyn Disk> {
    Arc::new(RamDisk::new(DiskInfo::new(SECTORS)).unwrap())
}

/// A raw image of zeroes in `dir`.
fn raw(dir: &Path, direct: bool) -> Arc<dyn Disk> {
    let path = dir.join(format!("{direct}.img"));
    std::fs::write(&path, vec![0; SECTORS as usize * 512]).unwrap();
    Arc::new(once_free(|| FileDisk::open(&path, Mode::Write, direct)))
}

/// Opens an image that another disk may have had until now: the file of a disk that is dropped is closed by a thread, which is waited for
/// a moment only.
fn once_free<T>(open: impl Fn() -> Result<T, OpenError>) -> T {
    let start = Instant::now();
    loop {
        match open() {
            Err(OpenError::InUse { .. }) if start.elapsed() < BOUND => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
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
    let mut machine = Machine::new(&*disk);
    std::fs::File::options().write(true).open(dir.path().join("false.img")).unwrap().set_len(1024).unwrap();
    assert_eq!(disk.info().unwrap().sectors, 2);
    for (sector, ok) in [(0, true), (1, false), (100, false)] {
        let step = Step { operation: Operation::Read, sector, sectors: 2, fill: 9, together: false };
        machine.submit(3, &step);
        assert_eq!(machine.wait()[0].2, ok, "sector {sector}");
    }
}

#[test]
fn dropped_engine_has_waited_for_its_operations() {
    let dir = tempfile::tempdir().unwrap();
    let Machine { engine, mut table, .. } = {
        let mut machine = Machine::new(&*raw(dir.path(), true));
        let step = Step { operation: Operation::Read, sector: 0, sectors: 8, fill: 1, together: false };
        (0..2).for_each(|tag| machine.submit(tag, &step));
        // Starts them; some may complete, and are dropped with the others.
        machine.engine.poll(&mut Vec::new()).unwrap();
        machine
    };
    drop(engine);
    table.reclaim(&mut Vec::new());
    assert_eq!(table.pinned(), 0, "the kernel has completed them");
    for tag in [Tag(0), Tag(1)] {
        assert_eq!(table.memory(tag).as_ref().map(bytes), Some(vec![0; 4096]));
    }
}

#[test]
fn operation_with_a_tag_that_is_in_use_or_too_large_fails() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = raw(dir.path(), true).engine(2).unwrap();
    let mut tables = [(), ()].map(|()| IoTable::new(3, || ()));
    let mut flush =
        |table: usize, tag| tables[table].start(Tag(tag), Operation::Flush, 0, |(), _| true).unwrap();
    engine.submit(&mut vec![flush(0, 0), flush(1, 0), flush(0, 2)]);
    let mut completions = Vec::new();
    engine.poll(&mut completions).unwrap();
    let failed: Vec<_> = completions.iter().filter(|c| c.result.is_err()).map(|c| c.request.tag()).collect();
    assert_eq!(failed, [Tag(0), Tag(2)]);
}

/// Runs a test in a thread whose io_uring is refused.
fn without_io_uring(test: fn()) {
    let run = move || {
        testkit::refuse_io_uring();
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

/// An operation on as many pieces of memory as an indirect request has segments at most, more than a system call takes.
fn carries_out_4096_slices(disk: &dyn Disk) {
    const SLICES: usize = 4096;
    let mut engine = disk.engine(1).unwrap();
    let mut table = IoTable::new(1, || MmapRegion::new(2 * SLICES * 512).unwrap());
    let pattern: Vec<u8> = (0..SLICES * 512).map(|at| (at / 512 % 251) as u8).collect();
    for operation in [Operation::Write, Operation::Read] {
        let region = table.memory_mut(Tag(0));
        let slice = |number| region.get_slice(2 * number * 512, 512).unwrap();
        for number in 0..SLICES {
            let bytes =
                if operation == Operation::Write { &pattern[number * 512..][..512] } else { &[0; 512] };
            slice(number).copy_from(bytes);
        }
        let request = table.start(Tag(0), operation, 0, |region, slices| {
            (0..SLICES).all(|number| slices.push(region.get_slice(2 * number * 512, 512).unwrap()))
        });
        engine.submit(&mut vec![request.unwrap()]);
        let mut completions = Vec::new();
        while completions.is_empty() {
            engine.poll(&mut completions).unwrap();
            if completions.is_empty() && !engine.needs_poll() {
                let ready =
                    poll(&mut [PollFd::new(engine.fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16));
                assert!(!matches!(ready, Ok(0)), "timed out");
            }
        }
        let completion = completions.remove(0);
        completion.result.unwrap();
        table.finish(completion.request);
    }
    let found = bytes(table.memory(Tag(0)));
    let found: Vec<_> = found.chunks(1024).flat_map(|pair| &pair[..512]).copied().collect();
    assert!(found == pattern);
}

/// An image large enough for that.
fn carries_out_4096_slices_of_an_image() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(2 << 20).unwrap();
    carries_out_4096_slices(&*open(&Spec::raw(file.path(), Mode::Write)).unwrap());
}

#[test]
fn operation_of_more_slices_than_a_system_call_takes_is_carried_out() {
    carries_out_4096_slices(&RamDisk::new(DiskInfo::new(4096)).unwrap());
    carries_out_4096_slices_of_an_image();
}

#[test]
fn threads_carry_out_operations_of_many_slices() {
    without_io_uring(carries_out_4096_slices_of_an_image);
}

#[test]
fn threads_agree_with_ram() {
    without_io_uring(uring_through_the_page_cache_agrees_with_ram);
    without_io_uring(uring_with_o_direct_agrees_with_ram);
}

#[test]
fn threads_keep_the_contract_of_engines() {
    without_io_uring(read_beyond_truncated_image_is_an_error);
    without_io_uring(dropped_engine_has_waited_for_its_operations);
    without_io_uring(operation_with_a_tag_that_is_in_use_or_too_large_fails);
}

#[test]
fn open_errors_name_the_file_and_what_was_found_and_expected() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let refusal = |name: &str, mode| open(&Spec::raw(path(name), mode)).map(|_| ()).unwrap_err().to_string();
    std::fs::write(path("short"), [0; 500]).unwrap();
    std::fs::write(path("empty"), []).unwrap();
    std::fs::write(path("good"), [0; 1024]).unwrap();
    for (name, text) in [
        ("none", "No such file"),
        (".", "found a directory, expected a regular file or a block device"),
        ("short", "found 500 bytes, expected at least one sector of 512"),
        ("empty", "found 0 bytes"),
    ] {
        let error = refusal(name, Mode::Read);
        let file = path(name).display().to_string();
        assert!(error.starts_with("params: ") && error.contains(&file) && error.contains(text), "{error}");
    }
    let first = open(&Spec::raw(path("good"), Mode::Write)).unwrap();
    assert!(refusal("good", Mode::Write).contains("in use by another disk"));
    assert!(refusal("good", Mode::Read).contains("in use by another disk"));
    assert!(refusal("good", Mode::WriteShared).contains("in use by another disk"));
    drop(first);
    let writers = [(), ()].map(|()| once_free(|| open(&Spec::raw(path("good"), Mode::WriteShared))));
    let error = refusal("good", Mode::Write);
    assert!(error.contains("w! in both to share it"), "{error}");
    assert!(refusal("good", Mode::Read).contains("in use by another disk"));
    drop(writers);
    let readers = [(), ()].map(|()| once_free(|| open(&Spec::raw(path("good"), Mode::Read))));
    assert!(readers[0].info().unwrap().read_only);
}

#[test]
fn incomplete_last_sector_is_not_part_of_the_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1_000_001).unwrap();
    let disk = open(&Spec::raw(file.path(), Mode::Write)).unwrap();
    assert_eq!(disk.info().unwrap().sectors, 1953);
}

#[test]
fn drive_without_a_medium_has_no_sectors_and_is_a_read_only_cdrom() {
    let keys = Keys::new("/b").with("params", "").with("mode", "w").with("device-type", "cdrom");
    let info = open(&Spec::from_keys(&keys).unwrap()).unwrap().info().unwrap();
    assert_eq!((info.sectors, info.read_only, info.cdrom, info.flush), (0, true, true, false));
    let published = disk_keys(&info);
    assert_eq!((published.get("info"), published.get("mode")), (Some("7"), Some("r")));
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
