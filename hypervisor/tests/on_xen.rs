//! What holds on real Xen alone, beyond the contract: run in dom0 of the test machine, `tests/xen/run on-xen`.
//!
//! Dom0 is its own peer: it grants pages to itself and maps them. Tests with `of_another_domain` in their names
//! need a guest and a disk, as the scenario `guest-grants` has them. All are ignored but in a build for a Xen host
//! (`--cfg xen_host`).

use hypervisor::xen::Xen;
use hypervisor::{Access, CopyOp, CopyPtr, DomId, Error, EventPort, GrantRef, Hypervisor, Mapping, Shared};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use vm_memory::{Bytes, ReadVolatile, VolatileSlice};

const SELF: DomId = DomId::DOM0;

/// The host.
fn xen() -> Xen {
    Xen::open().expect("the device nodes open")
}

fn write(shared: &Shared, offset: usize, bytes: &[u8]) {
    shared.slice(offset, bytes.len()).expect("inside").copy_from(bytes);
}

fn read(mapping: &Mapping, page: usize, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mapping.slice(page, offset, len).expect("inside").copy_to(&mut bytes[..]);
    bytes
}

/// Whether the descriptor becomes readable within 10 s.
fn readable(what: impl AsFd) -> bool {
    let mut fds = [PollFd::new(what.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(10_000u16)).expect("poll") > 0
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn we_are_dom0() {
    let xen = xen();
    assert_eq!(xen.domid(), DomId::DOM0);
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn a_shared_page_can_be_mapped_and_seen_both_ways() {
    let xen = xen();
    let shared = xen.share(SELF, 3, Access::ReadWrite).expect("shares");
    write(&shared, 4096 + 5, b"from the owner");
    let mapping = xen.map(SELF, shared.refs(), Access::ReadWrite).expect("maps");
    assert_eq!(read(&mapping, 1, 5, 14), b"from the owner");
    assert_eq!(read(&mapping, 2, 0, 4096), vec![0; 4096], "fresh pages are zeroed");
    mapping.slice(2, 100, 3).expect("inside").copy_from(b"abc");
    let mut bytes = [0u8; 3];
    shared.slice(2 * 4096 + 100, 3).expect("inside").copy_to(&mut bytes[..]);
    assert_eq!(&bytes, b"abc");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn a_refused_reference_is_named() {
    let xen = xen();
    let shared = xen.share(SELF, 2, Access::ReadWrite).expect("shares");
    let wrong = GrantRef(0x00ff_fff0);
    let refs = [shared.refs()[0], wrong, shared.refs()[1]];
    match xen.map(SELF, &refs, Access::ReadWrite) {
        Err(Error::Grant { gref, status, .. }) => assert!(gref == wrong && status < 0, "{gref} {status}"),
        other => panic!("{other:?}"),
    }
    xen.map(SELF, shared.refs(), Access::ReadWrite).expect("the others are not harmed");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn a_read_only_grant_is_not_mapped_for_writing() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadOnly).expect("shares");
    assert!(matches!(xen.map(SELF, shared.refs(), Access::ReadWrite), Err(Error::Grant { status: -1, .. })));
    xen.map(SELF, shared.refs(), Access::ReadOnly).expect("maps for reading");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn each_copy_has_its_own_status() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    write(&shared, 10, b"payload");
    let (mut first, mut second, mut third) = ([0u8; 7], [0u8; 7], [0u8; 7]);
    let from = |gref, offset| CopyPtr::Grant { domid: SELF, gref, offset };
    let mut ops = [
        CopyOp::new(from(GrantRef(0x00ff_fff0), 10), CopyPtr::Memory(VolatileSlice::from(&mut first[..])), 7),
        CopyOp::new(from(shared.refs()[0], 4090), CopyPtr::Memory(VolatileSlice::from(&mut second[..])), 7),
        CopyOp::new(from(shared.refs()[0], 10), CopyPtr::Memory(VolatileSlice::from(&mut third[..])), 7),
    ];
    xen.copy(&mut ops).expect("the batch is tried");
    let status = ops.map(|op| op.status);
    assert!(status[0] < 0, "{status:?}");
    assert_eq!(status[1..], [-10, 0]);
    assert_eq!((&first, &second, &third), (&[0; 7], &[0; 7], b"payload"));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn copies_go_from_grant_to_grant_and_out_of_and_into_mappings() {
    let xen = xen();
    let source = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    let dest = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    write(&source, 0, b"one two three");
    let mapping = xen.map(SELF, dest.refs(), Access::ReadWrite).expect("maps");
    let mapped = |offset, len| CopyPtr::Memory(mapping.slice(0, offset, len).expect("inside"));
    let granted = |gref, offset| CopyPtr::Grant { domid: SELF, gref, offset };
    let mut ops = [
        CopyOp::new(granted(source.refs()[0], 0), granted(dest.refs()[0], 100), 3),
        CopyOp::new(granted(source.refs()[0], 4), mapped(104, 3), 3),
    ];
    xen.copy(&mut ops).expect("the batch is tried");
    assert_eq!(ops.map(|op| op.status), [0, 0]);
    assert_eq!(read(&mapping, 0, 100, 7), b"one\0two");

    let mut back = [CopyOp::new(mapped(100, 7), granted(source.refs()[0], 2000), 7)];
    xen.copy(&mut back).expect("the batch is tried");
    assert_eq!(back[0].status, 0);
    let mut bytes = [0u8; 7];
    source.slice(2000, 7).expect("inside").read_slice(&mut bytes, 0).expect("inside");
    assert_eq!(&bytes, b"one\0two");
}

/// A page that a guest granted to us: its disk's ring, which nobody uses as long as nobody serves it. The scenario
/// `guest-grants` makes such a guest and names it, DOMID/GREF.
fn guests_page() -> (DomId, GrantRef) {
    let named = std::env::var("XPV_GUEST_GRANT").expect("the scenario names a page");
    let (domid, gref) = named.split_once('/').expect("DOMID/GREF");
    (DomId(domid.parse().expect("a number")), GrantRef(gref.parse().expect("a number")))
}

/// Xen refuses to copy from a frame that is not ours, be it mapped: the copy must go another way.
#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run guest-grants")]
fn a_page_of_another_domain_is_copied_through_its_mapping() {
    let xen = xen();
    let (domid, gref) = guests_page();
    let mapping = xen.map(domid, &[gref], Access::ReadWrite).expect("maps");
    let mapped = |offset| CopyPtr::Memory(mapping.slice(0, offset, 7).expect("inside"));
    mapping.slice(0, 2000, 7).expect("inside").copy_from(b"payload");

    let ours = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    let granted = |offset| CopyPtr::Grant { domid: SELF, gref: ours.refs()[0], offset };
    let mut ops = [
        CopyOp::new(mapped(2000), granted(0), 7),
        CopyOp::new(CopyPtr::Grant { domid, gref, offset: 2000 }, granted(10), 7),
        CopyOp::new(granted(0), mapped(3000), 7),
    ];
    xen.copy(&mut ops).expect("the batch is tried");
    assert_eq!(ops.map(|op| op.status), [0, 0, 0]);
    let mut bytes = [0u8; 17];
    ours.slice(0, 17).expect("inside").copy_to(&mut bytes[..]);
    assert_eq!(&bytes, b"payload\0\0\0payload");
    assert_eq!(read(&mapping, 0, 3000, 7), b"payload");
    println!("copied through a mapping of domain {domid}");
}

/// Past the page cache: the kernel takes a mapped grant for memory like any other.
#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run guest-grants")]
fn a_disk_is_read_straight_into_a_page_of_another_domain() {
    let xen = xen();
    let (domid, gref) = guests_page();
    let disk = std::env::var("XPV_BLOCK_DEVICE").expect("the scenario names a disk");
    let mut disk = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(disk).expect("opens");
    let mapping = xen.map(domid, &[gref], Access::ReadWrite).expect("maps");
    let mut page = mapping.slice(0, 0, 4096).expect("inside");
    assert_eq!(disk.read_volatile(&mut page).expect("reads"), 4096);
    assert_eq!(read(&mapping, 0, 510, 2), [0x55, 0xaa], "the partition table's mark");
    println!("read into a page of domain {domid}");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn events_go_both_ways() {
    let xen = xen();
    let listening = xen.alloc_unbound(SELF).expect("listens");
    let connected = xen.bind_interdomain(SELF, listening.port()).expect("connects");
    assert!(readable(connected.as_fd()), "the connecting end starts pending");
    assert!(connected.take().expect("takes"));
    assert!(!connected.take().expect("takes"));
    connected.notify().expect("notifies");
    connected.notify().expect("notifies");
    assert!(readable(listening.as_fd()));
    assert!(listening.take().expect("takes"));
    listening.notify().expect("notifies");
    assert!(readable(connected.as_fd()));
    assert!(connected.take().expect("takes"));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn a_port_never_given_and_a_domain_that_is_not_there_are_told_apart() {
    let xen = xen();
    assert!(matches!(xen.bind_interdomain(SELF, EventPort(3000)), Err(Error::NoSuchPort { .. })));
    assert!(matches!(xen.bind_interdomain(DomId(999), EventPort(1)), Err(Error::NoSuchDomain(DomId(999)))));
    assert!(matches!(
        xen.map(DomId(999), &[GrantRef(8)], Access::ReadOnly),
        Err(Error::NoSuchDomain(DomId(999)))
    ));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn a_page_still_mapped_keeps_its_bytes_after_the_grant_ended() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    write(&shared, 0, b"mine");
    let mapping = xen.map(SELF, shared.refs(), Access::ReadOnly).expect("maps");
    shared.end().expect("ends");
    // The kernel must not have given the page to these.
    let others = (0..8).map(|_| xen.share(SELF, 4, Access::ReadWrite).expect("shares"));
    let others: Vec<_> = others.inspect(|other| write(other, 0, &[0xee; 4096])).collect();
    assert_eq!(read(&mapping, 0, 0, 4), b"mine");
    drop(others);
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn pages_cannot_be_given_away() {
    let xen = xen();
    assert!(matches!(xen.transfer(&mut []), Err(Error::Unsupported(_))));
}
