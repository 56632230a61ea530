//! Guests whose disks are on one medium, and whose rings have different depths.

use blkback::VbdDriver;
use blkfront::{Disk, Operation, Options, Request};
use ring_abi::DomId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::block::{Backend, FixedTimeDisk, XVDA, options, wait_for};
use testkit::{Machine, StopOnDrop};

/// Operations of a victim.
const OPERATIONS: u64 = 400;

/// Keeps the ring full of reads until it has made so many, or is told to stop; returns how many it has made.
fn read(mut disk: Disk, operations: u64, stop: &AtomicBool) -> u64 {
    let request =
        |token, buffer| Request { token, operation: Operation::Read, sector: 0, bytes: 4096, buffer };
    for token in 0..disk.depth() as u64 {
        let buffer = Some(disk.buffer(4096).unwrap());
        disk.submit(request(token, buffer)).unwrap();
    }
    let mut count = 0;
    while count < operations && !stop.load(Ordering::Relaxed) {
        for completion in wait_for(&mut disk, 1) {
            completion.check().unwrap();
            count += 1;
            disk.submit(completion.request).unwrap();
        }
    }
    count
}

#[test]
fn ring_of_depth_512_leaves_two_of_depth_32_their_share_of_the_medium() {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0);
    let medium = FixedTimeDisk::new(4, Duration::from_micros(400));
    let opener = Box::new(move |_: &_, _: &_| Ok(Arc::new(medium.clone()) as Arc<dyn blkback::Disk>));
    let _backend = Backend::start_with(VbdDriver::with_opener(dom0.clone(), dom0.clone(), opener), &dom0);
    let open = |domid, ring_page_order| {
        machine.attach_disk(DomId(domid), XVDA, "none");
        testkit::block::open(&machine.domain(DomId(domid)), Options { ring_page_order, ..options() })
    };
    let hog = open(1, 4);
    let victims = [open(2, 0), open(3, 0)];
    assert_eq!((hog.depth(), victims[0].depth()), (512, 32));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        let hog = scope.spawn(move || read(hog, u64::MAX, stop));
        let victims = victims.map(|disk| scope.spawn(move || read(disk, OPERATIONS, stop)));
        let made: u64 = victims.map(|victim| victim.join().unwrap()).iter().sum();
        stop.store(true, Ordering::Relaxed);
        let hog = hog.join().unwrap();
        // Half as many, and its first 512, which may have come before the others' first; without shares eight times as many.
        assert!(hog < 512 + made * 3 / 4, "the hog has made {hog}, both victims {made}");
    });
}
