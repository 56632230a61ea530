//! Disks on a machine in threads: the bytes that a frontend reads and writes are those of the image.

use blkfront::{Disk, Error, Operation, Options, Request};
use grant_table::{Access, GrantTable};
use ring_abi::DomId;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::NamedTempFile;
use testkit::block::{Backend, DiskSpec, GUEST, XVDA, disk, open, options, try_open, wait_for};
use testkit::random::bytes;
use testkit::{BOUND, Machine};
use xenbus::stats::{Snapshot, Stats};
use xenbus::{Device, XenbusState};
use xenstore::Nodes;

const MIB: usize = 1 << 20;

fn image(len: usize) -> (NamedTempFile, Vec<u8>) {
    let mut file = NamedTempFile::new().unwrap();
    let content = bytes(1, len);
    file.write_all(&content).unwrap();
    (file, content)
}

/// A machine, a backend that serves a disk of `len` bytes to the guest, the disk's device, its image, and the image's
/// content. The backend is to be dropped before the machine.
fn serve(len: usize) -> (Machine, Backend, Device, (NamedTempFile, Vec<u8>)) {
    let (file, content) = image(len);
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let device = machine.attach_disk(GUEST, XVDA, path(&file));
    (machine, back, device, (file, content))
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

fn content(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
}

#[test]
fn reads_and_writes_reach_the_image() {
    let (file, mut expected) = image(4 * MIB);
    let machine = Machine::new();
    let _back = Backend::start(&machine);
    machine.attach_disk(GUEST, XVDA, path(&file));
    let guest = machine.domain(GUEST);
    for order in [0, 2] {
        let mut disk = open(&guest, Options { ring_page_order: order, ..options() });
        assert_eq!(disk.info().unwrap().sectors, 8192);
        assert_eq!(disk.depth(), 32 << order);
        let mut read = vec![0; expected.len()];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == expected);
        for (seed, offset, len) in [(2, 512, 512), (3, 8192, 100 << 10), (4, 4 * MIB - 4096, 4096)] {
            let bytes = bytes(seed + 10 * u64::from(order), len);
            disk.write_at(offset as u64, &bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes);
        }
        disk.flush().unwrap();
        assert!(content(&file) == expected);
        assert!(matches!(disk.read_at(1, &mut [0; 512]), Err(Error::Alignment { .. })));
        assert!(matches!(disk.read_at(4 * MIB as u64, &mut [0; 512]), Err(Error::Range { .. })));
        disk.close().unwrap();
        machine.wait_for_state(&back_path(), XenbusState::Closed);
    }
}

/// A read of the buffer's whole length.
fn read_request(disk: &Disk, token: u64, sector: u64, bytes: usize) -> Request {
    let buffer = disk.buffer(bytes).unwrap();
    Request { token, operation: Operation::Read, sector, bytes, buffer: Some(buffer) }
}

fn back_path() -> String {
    Device::new("vbd", GUEST, XVDA).back_path()
}

#[test]
fn write_to_read_only_disk_fails() {
    let (file, expected) = image(MIB);
    let machine = Machine::new();
    let back = Backend::start(&machine);
    let image = path(&file);
    machine.attach_disk_as(GUEST, &DiskSpec { writable: false, ..disk(XVDA, image) });
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, options());
    assert!(disk.info().unwrap().read_only);
    assert!(matches!(disk.write_at(0, &[1; 512]), Err(Error::ReadOnly)));
    // A request that skips the frontend's check.
    let buffer = disk.buffer(4096).unwrap();
    let request =
        Request { token: 1, operation: Operation::Write, sector: 0, bytes: 4096, buffer: Some(buffer) };
    disk.submit(request).unwrap();
    let done = wait_for(&mut disk, 1);
    assert!(matches!(done[0].check(), Err(Error::Status { .. })));
    assert!(content(&file) == expected);
    let stats = stats_of(&back);
    let write = stats.operation("write").unwrap();
    assert_eq!((write.requests, write.bytes, write.error("malformed")), (1, 0, 1));
    let front = disk.stats().snapshot();
    let write = front.operation("write").unwrap();
    assert_eq!((write.requests, write.bytes, write.error("io")), (1, 0, 1));
}

#[test]
fn requests_in_flight_together_keep_their_buffers() {
    let (machine, back, _, (_file, expected)) = serve(4 * MIB);
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, Options { ring_page_order: 1, ..options() });
    let depth = disk.depth() as u64;
    for token in 0..depth {
        let request = read_request(&disk, token, token * 16, 8192);
        disk.submit(request).unwrap();
    }
    let extra = read_request(&disk, 99, 0, 512);
    assert!(disk.submit(extra).is_err(), "the ring is full");
    let mut tokens = Vec::new();
    for completion in wait_for(&mut disk, depth as usize) {
        completion.check().unwrap();
        let token = completion.request.token;
        let mut read = [0; 8192];
        completion.request.buffer.unwrap().copy_to(&mut read);
        assert!(read == expected[token as usize * 8192..][..8192], "token {token}");
        tokens.push(token);
    }
    tokens.sort_unstable();
    assert_eq!(tokens, (0..depth).collect::<Vec<_>>());
    for stats in [stats_of(&back), disk.stats().snapshot()] {
        let read = stats.operation("read").unwrap();
        assert_eq!((read.requests, read.bytes, stats.in_flight), (depth, depth * 8192, Some(0)));
    }
    let front = disk.stats().snapshot();
    assert!(front.notifications.sent >= 1 && front.grants.is_none(), "{front:?}");
    let stats = stats_of(&back);
    let read = stats.operation("read").unwrap();
    assert_eq!(read.latency.as_ref().unwrap().count(), depth);
    assert_eq!(stats.grants.unwrap().mapped, 2 * depth);
    // A response may be seen before it is counted whether it took an event.
    wait_until("its event is counted", || {
        let events = stats_of(&back).notifications;
        events.sent + events.suppressed >= 1
    });
}

fn stats_of(back: &Backend) -> Snapshot {
    back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot()
}

#[test]
fn disk_shared_by_threads_keeps_their_writes() {
    let (machine, _back, _, (_file, _)) = serve(4 * MIB);
    let guest = machine.domain(GUEST);
    let disk = Mutex::new(open(&guest, options()));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..20 {
                    let bytes = bytes(thread * 100 + round, 64 << 10);
                    let offset = thread * MIB as u64 + (round % 4) * (64 << 10);
                    disk.lock().unwrap().write_at(offset, &bytes).unwrap();
                    let mut read = vec![0; bytes.len()];
                    disk.lock().unwrap().read_at(offset, &mut read).unwrap();
                    assert!(read == bytes);
                }
            });
        }
    });
    let mut disk = disk.into_inner().unwrap();
    disk.flush().unwrap();
    disk.close().unwrap();
}

#[test]
fn disk_that_grows_is_resized_after_a_write_to_its_directory() {
    let (machine, _back, device, (file, _)) = serve(MIB);
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, options());
    file.as_file().set_len(2 * MIB as u64).unwrap();
    file.as_file().write_all_at(&[7; 512], 2 * MIB as u64 - 512).unwrap();
    // Any write in the backend's directory makes it read the size again.
    machine.client().write(&format!("{}/resize", device.back_path()), "1").unwrap();
    let mut done = Vec::new();
    while disk.info().unwrap().sectors != 4096 {
        disk.wait(&mut done, Some(BOUND)).unwrap();
    }
    let mut last = [0; 512];
    disk.read_at(2 * MIB as u64 - 512, &mut last).unwrap();
    assert_eq!(last, [7; 512]);
}

#[test]
fn disk_that_grows_is_resized_while_requests_are_served() {
    let (machine, _back, _, (file, _)) = serve(MIB);
    let mut disk = open(&machine.domain(GUEST), options());
    file.as_file().set_len(2 * MIB as u64).unwrap();
    let start = std::time::Instant::now();
    while disk.info().unwrap().sectors != 4096 {
        assert!(start.elapsed() < BOUND, "not resized within {BOUND:?}");
        disk.read_at(0, &mut [0; 512]).unwrap();
        disk.process_events().unwrap();
    }
}

#[test]
fn disk_closes_reopens_and_detaches() {
    let (machine, back, device, (_file, expected)) = serve(MIB);
    let guest = machine.domain(GUEST);
    for _ in 0..5 {
        let mut disk = open(&guest, options());
        let mut read = vec![0; 4096];
        disk.read_at(4096, &mut read).unwrap();
        assert!(read == expected[4096..8192]);
        disk.close().unwrap();
    }
    let stats = stats_of(&back);
    assert_eq!(stats.operation("read").unwrap().requests, 5, "counted over all connections");
    assert_eq!(stats.in_flight, Some(0));
    let mut disk = open(&guest, options());
    machine.detach(&device);
    wait_until_closed(&mut disk);
    assert!(matches!(disk.read_at(0, &mut [0; 512]), Err(Error::Closed)));
    disk.close().unwrap();
    machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    machine.remove(&device);
    let is_dropped = || back.registry.get((GUEST, XVDA)).is_none();
    machine.client().write("/local/poke", "").unwrap();
    wait_until("the device is dropped", is_dropped);
    assert_eq!(guest.quarantined(DomId::DOM0), 0, "everything was unmapped");
}

#[test]
fn close_after_the_disk_was_replaced_leaves_the_new_one_alone() {
    let (machine, _back, device, (file, _)) = serve(MIB);
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, options());
    machine.detach(&device);
    wait_until_closed(&mut disk);
    machine.wait_for_state(&device.back_path(), XenbusState::Closed);
    machine.remove(&device);
    machine.attach_disk(GUEST, XVDA, path(&file));
    machine.wait_for_state(&device.back_path(), XenbusState::InitWait);
    disk.close().unwrap();
    assert_eq!(machine.state(&device.front_path()), XenbusState::Initialising);
    open(&guest, options()).read_at(0, &mut [0; 512]).unwrap();
}

fn wait_until_closed(disk: &mut Disk) {
    let mut done = Vec::new();
    while !disk.is_closed() {
        let _ = disk.wait(&mut done, Some(BOUND));
    }
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is() {
        assert!(start.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn nodes_removed_with_requests_in_flight_end_the_device() {
    let (machine, back, device, (_file, _)) = serve(MIB);
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, options());
    let mut done = Vec::new();
    for token in 0..32 {
        let request = read_request(&disk, token, token * 8, 4096);
        disk.submit(request).unwrap();
    }
    disk.commit().unwrap();
    machine.client().rm(&device.back_path()).unwrap();
    wait_until("the device is dropped", || back.registry.list(None, 1).is_empty());
    let _ = disk.wait(&mut done, Some(Duration::ZERO));
    back.stop();
    drop(disk);
    drop(done);
    wait_until("everything is unmapped", || {
        // The quarantine is checked when pages are allocated.
        drop(guest.share(DomId::DOM0, 1, Access::ReadWrite).unwrap());
        guest.quarantined(DomId::DOM0) == 0
    });
}

#[test]
fn backend_that_restarts_loses_no_write() {
    let (machine, mut back, _, (file, _)) = serve(MIB);
    let guest = machine.domain(GUEST);
    let mut disk = open(&guest, options());
    for round in 0..5u64 {
        let thread = std::thread::spawn(move || {
            for n in 0..64u64 {
                disk.write_at(n * 4096, &bytes(round * 1000 + n, 4096)).unwrap();
            }
            disk
        });
        back.stop();
        back = Backend::start(&machine);
        disk = thread.join().unwrap();
        let content = content(&file);
        for n in 0..64 {
            let expected = bytes(round * 1000 + n, 4096);
            assert!(content[n as usize * 4096..][..4096] == expected, "round {round}, page {n}");
        }
    }
    disk.close().unwrap();
}

/// The thread of a removed device, or an earlier backend process, may hold an image's lock for a short time.
#[test]
fn image_still_in_use_is_opened_once_released() {
    let (file, _) = image(MIB);
    let params = path(&file).to_owned();
    let machine = Machine::new();
    let hv = machine.domain(DomId::DOM0);
    let mut refusals = 60;
    let opener = Box::new(move |_: &_, keys: &xenbus::Keys| {
        if refusals > 0 {
            refusals -= 1;
            return Err(xenbus::driver::Failure::in_use_for_now("in use"));
        }
        let spec = blkback::engine::Spec::from_keys(keys).unwrap();
        Ok(blkback::engine::open(&spec).unwrap())
    });
    let _back = Backend::start_with(blkback::VbdDriver::with_opener(hv.clone(), hv.clone(), opener), &hv);
    let device = machine.attach_disk(GUEST, XVDA, &params);
    let mut disk = open(&machine.domain(GUEST), options());
    disk.read_at(0, &mut [0; 512]).unwrap();
    assert!(machine.backend_error(&device).is_none());
}

#[test]
fn missing_image_is_reported_and_opened_once_it_exists() {
    let machine = Machine::new();
    let _back = Backend::start(&machine);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing.img");
    let device = machine.attach_disk(GUEST, XVDA, path.to_str().unwrap());
    machine.wait_for_state(&device.back_path(), XenbusState::Closing);
    let error = machine.backend_error(&device).unwrap();
    assert!(error.starts_with("2 params: ") && error.contains("missing.img"), "{error}");
    let guest = machine.domain(GUEST);
    std::fs::write(&path, [0; 1024]).unwrap();
    machine.client().write(&format!("{}/again", device.back_path()), "1").unwrap();
    let disk = try_open(&guest, options()).unwrap();
    assert_eq!(disk.info().unwrap().sectors, 2);
}
