//! The pages of a guest's disks, in a machine of threads: what one disk borrows, another one has once it is given back.

use std::sync::Arc;

use blkfront::{Buffer, Disk};
use hypervisor::local::{Domain, Options};
use testkit::Machine;
use testkit::block::{Backend, GUEST, XVDA, options};
use toolstack::guest::buffers::{CommonBuffers, DiskBuffers};

/// Pages of the guest: a share is one buffer of 11 pages, and common are three large ones of 33 pages, and 37 others.
const PAGES: u32 = 1024;
const COMMON: usize = 37;
const LARGE: usize = 3;

fn open(guest: &Arc<Domain>, devid: u32) -> Disk {
    Disk::open_with(guest.clone(), guest.clone(), guest.clone(), devid, options()).unwrap()
}

/// Takes all buffers that a disk can have.
fn take_all(buffers: &mut DiskBuffers, disk: &Disk) -> Vec<Buffer> {
    std::iter::from_fn(|| buffers.take(disk).unwrap()).collect()
}

#[test]
fn disk_has_its_share_whatever_others_hold_and_the_rest_once_it_is_given_back() {
    let machine = Machine::new();
    let _back = Backend::start(&machine);
    let guest = machine.sandbox.join_with(GUEST, Options { arena_pages: PAGES }).unwrap();
    let [busy, idle] = [XVDA, XVDA + 16].map(|devid| {
        machine.attach_disk(GUEST, devid, "ram:1048576");
        open(&guest, devid)
    });
    let common = CommonBuffers::of_pages(PAGES as usize);
    let mut busy_buffers = DiskBuffers::new(&busy, common.clone()).unwrap();
    let mut idle_buffers = DiskBuffers::new(&idle, common.clone()).unwrap();
    let taken = take_all(&mut busy_buffers, &busy);
    assert_eq!(taken.len(), 1 + COMMON);
    let own = take_all(&mut idle_buffers, &idle);
    assert_eq!(own.len(), 1);
    taken.into_iter().for_each(|buffer| busy_buffers.put(buffer));
    let borrowed = take_all(&mut idle_buffers, &idle);
    assert_eq!(borrowed.len(), COMMON);
    assert_eq!(take_all(&mut busy_buffers, &busy).len(), 1, "the other disk's share");
    // A disk is closed while it has borrowed all: they are dropped with its requests.
    drop(idle_buffers);
    drop((own, borrowed));
    let mut next = DiskBuffers::new(&idle, common).unwrap();
    assert_eq!(take_all(&mut next, &idle).len(), 1 + COMMON);
    idle.close().unwrap();
    busy.close().unwrap();
}

#[test]
fn large_buffers_are_few_and_whoever_finds_none_goes_on_without() {
    let machine = Machine::new();
    let _back = Backend::start(&machine);
    let guest = machine.sandbox.join_with(GUEST, Options { arena_pages: PAGES }).unwrap();
    let [busy, other] = [XVDA, XVDA + 16].map(|devid| {
        machine.attach_disk(GUEST, devid, "ram:1048576");
        open(&guest, devid)
    });
    let common = CommonBuffers::of_pages(PAGES as usize);
    let mut busy_buffers = DiskBuffers::new(&busy, common.clone()).unwrap();
    let mut other_buffers = DiskBuffers::new(&other, common.clone()).unwrap();
    let bytes = busy_buffers.request_bytes(&busy);
    assert_eq!(bytes, 128 << 10);
    let taken: Vec<_> = std::iter::from_fn(|| busy_buffers.take_large(&busy, bytes).unwrap()).collect();
    assert_eq!(taken.len(), LARGE);
    assert!(other_buffers.take_large(&other, bytes).unwrap().is_none());
    // The others are there all the same.
    assert_eq!(take_all(&mut other_buffers, &other).len(), 1 + COMMON);
    let mut taken = taken.into_iter();
    busy_buffers.put(taken.next().unwrap());
    assert!(other_buffers.take_large(&other, 64 << 10).unwrap().is_some());
    // A disk that is closed leaves those that it had to the next.
    drop((busy_buffers, taken));
    busy.close().unwrap();
    assert!(other_buffers.take_large(&other, bytes).unwrap().is_some());
}
