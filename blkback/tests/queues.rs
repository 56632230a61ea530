//! A disk with several queues: each has a ring, a channel and a thread of its own, and the image is one.

use std::path::Path;

use blkback::VbdDriver;
use blkfront::{Completion, Disk, Operation, Options, Request};
use ring_abi::DomId;
use ring_abi::blkif::key;
use testkit::block::{Backend, GUEST, XVDA, open, options, wait_for};
use testkit::random::bytes;
use testkit::{BOUND, Machine};
use xenbus::stats::Snapshot;
use xenbus::{Device, XenbusState};
use xenstore::Nodes;

const MIB: usize = 1 << 20;

fn image(bytes: &[u8]) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.into_temp_path()
}

/// A backend that offers so many queues.
fn start(machine: &Machine, queues: u32) -> Backend {
    let dom0 = machine.domain(DomId::DOM0);
    let mut driver = VbdDriver::new(dom0.clone(), dom0.clone());
    driver.set_max_queues(queues);
    Backend::start_with(driver, &dom0)
}

fn serve(queues: u32, image: &Path) -> (Machine, Backend, Device) {
    let machine = Machine::new();
    let back = start(&machine, queues);
    let device = machine.attach_disk(GUEST, XVDA, image.to_str().unwrap());
    (machine, back, device)
}

fn stats(back: &Backend) -> Snapshot {
    back.registry.get((GUEST, XVDA)).unwrap().stats.unwrap().snapshot()
}

fn request(disk: &Disk, operation: Operation, token: u64, page: u64) -> Request {
    let buffer = (operation != Operation::Flush).then(|| disk.buffer(4096).unwrap());
    let bytes = if buffer.is_some() { 4096 } else { 0 };
    Request { token, operation, sector: 8 * page, bytes, buffer }
}

#[test]
fn requests_on_all_queues_reach_the_image() {
    let content = bytes(1, 4 * MIB);
    let image = image(&content);
    let (machine, back, device) = serve(4, &image);
    let mut disk = open(&machine.domain(GUEST), Options { queues: 3, ..options() });
    let mut store = machine.client();
    let keys = |name: &str| store.read_text(&format!("{}/{name}", device.front_path())).ok();
    let [count, first, last, top] =
        [key::MULTI_QUEUE_NUM_QUEUES, "queue-0/ring-ref", "queue-2/event-channel", key::RING_REF].map(keys);
    assert!(first.is_some() && last.is_some() && top.is_none());
    assert_eq!((count.as_deref(), disk.depth()), (Some("3"), 96));
    for token in 0..96 {
        let read = request(&disk, Operation::Read, token, 7 * token);
        disk.submit(read).unwrap();
    }
    assert!(disk.submit(Request::flush(99)).is_err(), "the rings are full");
    for completion in wait_for(&mut disk, 96) {
        completion.check().unwrap();
        let mut read = [0; 4096];
        completion.request.buffer.unwrap().copy_to(&mut read);
        assert!(read == content[completion.request.token as usize * 7 * 4096..][..4096]);
    }
    let snapshot = stats(&back);
    let reads = |snapshot: &Snapshot| snapshot.operation("read").unwrap().requests;
    assert_eq!((reads(&snapshot), snapshot.in_flight), (96, Some(0)));
    assert_eq!(snapshot.queues.iter().map(reads).collect::<Vec<_>>(), [32; 3]);
    assert!(snapshot.queues.iter().all(|queue| queue.notifications.received > 0));

    let written = bytes(2, 2 * MIB);
    disk.write_at(MIB as u64, &written).unwrap();
    disk.flush().unwrap();
    assert!(std::fs::read(&image).unwrap()[MIB..3 * MIB] == written);
    disk.close().unwrap();
    machine.wait_for_state(&device.back_path(), XenbusState::Closed);
}

#[test]
fn queues_are_as_many_as_both_ends_have() {
    let image = image(&bytes(1, MIB));
    for (offered, wanted, expected) in [(1, 4, 1), (4, 1, 1), (2, 8, 2)] {
        let (machine, back, device) = serve(offered, &image);
        let mut disk =
            open(&machine.domain(GUEST), Options { queues: wanted, ring_page_order: 2, ..options() });
        disk.read_at(0, &mut [0; 4096]).unwrap();
        assert_eq!(stats(&back).queues.len(), expected, "{offered} offered, {wanted} wanted");
        // The rings have as many pages together as one has.
        assert_eq!(disk.depth(), 128);
        let path = format!("{}/{}", device.front_path(), key::MULTI_QUEUE_NUM_QUEUES);
        assert_eq!(machine.client().exists(&path).unwrap(), expected > 1);
        disk.close().unwrap();
    }
}

#[test]
fn barrier_is_ordered_among_requests_of_all_queues() {
    let image = image(&bytes(1, MIB));
    let (machine, _back, _) = serve(2, &image);
    let mut disk = open(&machine.domain(GUEST), Options { queues: 2, ..options() });
    let mut done: Vec<Completion> = Vec::new();
    // Rounds of writes to two pages and a barrier to the first: what a page holds last is of the round that it was written in last.
    for round in 0..50u64 {
        for (operation, page) in (0..20).map(|n| (Operation::Write, n % 2)).chain([(Operation::Barrier, 0)]) {
            let mut next = request(&disk, operation, round, page);
            let byte = if operation == Operation::Barrier { 100 + round as u8 } else { round as u8 };
            next.buffer.as_ref().unwrap().fill(&[byte; 4096]);
            while let Err(back) = disk.submit(next) {
                next = back;
                assert!(disk.in_flight() > 0);
                disk.wait(&mut done, Some(BOUND)).unwrap();
            }
        }
    }
    while disk.in_flight() > 0 {
        disk.wait(&mut done, Some(BOUND)).unwrap();
    }
    assert_eq!(done.len(), 50 * 21);
    done.iter().for_each(|completion| completion.check().unwrap());
    let content = std::fs::read(&image).unwrap();
    assert_eq!((content[0], content[4096]), (149, 49));
    disk.close().unwrap();
}

/// A frontend is told of a new size whichever queue's thread has found it, and all threads accept requests up to there.
#[test]
fn disk_that_has_grown_is_larger_on_every_queue() {
    let image = image(&bytes(1, MIB));
    let (machine, _back, device) = serve(3, &image);
    let mut disk = open(&machine.domain(GUEST), Options { queues: 3, ..options() });
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    file.set_len(2 * MIB as u64).unwrap();
    machine.client().write(&format!("{}/resize", device.back_path()), "1").unwrap();
    let start = std::time::Instant::now();
    while disk.info().unwrap().sectors != 4096 {
        assert!(start.elapsed() < BOUND);
        disk.wait(&mut Vec::new(), Some(BOUND)).unwrap();
    }
    // The threads are told just before the frontend is, and look at that before their next request.
    (0..96).for_each(|token| {
        let read = request(&disk, Operation::Read, token, 300 + token);
        disk.submit(read).unwrap();
    });
    wait_for(&mut disk, 96).iter().for_each(|completion| completion.check().unwrap());
    disk.close().unwrap();
}

#[test]
fn frontend_keeps_its_requests_while_backends_with_other_numbers_of_queues_follow_each_other() {
    let content = bytes(1, MIB);
    let image = image(&content);
    let (machine, back, _) = serve(3, &image);
    let mut disk = open(&machine.domain(GUEST), Options { queues: 8, ..options() });
    let mut back = Some(back);
    for (round, queues) in [1u32, 4, 2, 3].into_iter().enumerate() {
        back.take().unwrap().stop();
        // Nobody serves the rings now.
        let depth = disk.depth() as u64;
        for token in 0..depth {
            let read = request(&disk, Operation::Read, token, (token + round as u64) % 256);
            disk.submit(read).unwrap();
        }
        disk.commit().unwrap();
        back = Some(start(&machine, queues));
        let mut tokens = Vec::new();
        for completion in wait_for(&mut disk, depth as usize) {
            completion.check().unwrap();
            let Request { token, sector, buffer, .. } = completion.request;
            let mut read = [0; 4096];
            buffer.unwrap().copy_to(&mut read);
            assert!(read == content[sector as usize * 512..][..4096], "{token} of round {round}");
            tokens.push(token);
        }
        tokens.sort_unstable();
        assert_eq!(tokens, (0..depth).collect::<Vec<_>>());
        assert_eq!(disk.depth(), 32 * queues as usize);
    }
    disk.close().unwrap();
}
