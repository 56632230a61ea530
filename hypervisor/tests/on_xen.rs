//! Tests of real Xen beyond the contract, run in dom0 of the test machine: `tests/xen/run on-xen`.
//!
//! Dom0 is its own peer: it grants pages to itself and maps them. Tests with `of_another_domain` in their names
//! need a guest and a disk, as the scenario `guest-grants` has them. All are ignored but in a build for a Xen host
//! (`--cfg xen_host`).

use event_channel::EventChannels;
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, Mapping, Shared, SharedSlice};
use hypervisor::xen::Xen;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::grant::Status;
use ring_abi::{DomId, EventPort, GrantRef};
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use vm_memory::{ReadVolatile, VolatileSlice};

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
fn own_domid_in_dom0_is_zero() {
    let xen = xen();
    assert_eq!(xen.domid(), DomId::DOM0);
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn shared_page_once_mapped_is_seen_by_both_sides() {
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
fn map_with_an_invalid_reference_names_it() {
    let xen = xen();
    let shared = xen.share(SELF, 2, Access::ReadWrite).expect("shares");
    let wrong = GrantRef(0x00ff_fff0);
    let refs = [shared.refs()[0], wrong, shared.refs()[1]];
    match xen.map(SELF, &refs, Access::ReadWrite) {
        Err(grant_table::Error::Grant { gref, status, .. }) => {
            assert!(gref == wrong && !status.is_okay(), "{gref} {status}")
        }
        other => panic!("{other:?}"),
    }
    xen.map(SELF, shared.refs(), Access::ReadWrite).expect("the others are not harmed");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn read_only_grant_is_not_mapped_for_writing() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadOnly).expect("shares");
    assert!(matches!(
        xen.map(SELF, shared.refs(), Access::ReadWrite),
        Err(grant_table::Error::Grant { status: Status::GENERAL_ERROR, .. })
    ));
    xen.map(SELF, shared.refs(), Access::ReadOnly).expect("maps for reading");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn failed_copy_does_not_stop_the_others() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    write(&shared, 10, b"payload");
    let mut first = [0u8; 7];
    let mut second = [0u8; 7];
    let mut third = [0u8; 7];
    let from = |gref, offset| CopyPtr::Grant { domid: SELF, gref, offset };
    let mut ops = [
        CopyOp::new(from(GrantRef(0x00ff_fff0), 10), CopyPtr::Memory(SharedSlice::from(&mut first[..])), 7),
        CopyOp::new(from(shared.refs()[0], 4090), CopyPtr::Memory(SharedSlice::from(&mut second[..])), 7),
        CopyOp::new(from(shared.refs()[0], 10), CopyPtr::Memory(SharedSlice::from(&mut third[..])), 7),
    ];
    xen.copy(&mut ops).expect("the batch is tried");
    let status = ops.map(|op| op.status);
    assert!(!status[0].is_okay(), "{status:?}");
    assert_eq!(status[1..], [Status::BAD_COPY_ARG, Status::OKAY]);
    assert_eq!((&first, &second, &third), (&[0; 7], &[0; 7], b"payload"));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn copy_between_grants_and_mappings_moves_the_bytes() {
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
    assert_eq!(ops.map(|op| op.status), [Status::OKAY; 2]);
    assert_eq!(read(&mapping, 0, 100, 7), b"one\0two");

    let mut back = [CopyOp::new(mapped(100, 7), granted(source.refs()[0], 2000), 7)];
    xen.copy(&mut back).expect("the batch is tried");
    assert_eq!(back[0].status, Status::OKAY);
    let mut bytes = [0u8; 7];
    source.slice(2000, 7).expect("inside").copy_to(&mut bytes);
    assert_eq!(&bytes, b"one\0two");
}

/// A page that a guest granted to dom0: its disk's ring, which is unused while no backend serves it. The scenario
/// `guest-grants` creates the guest and passes the grant as DOMID/GREF.
fn guests_page() -> (DomId, GrantRef) {
    let named = std::env::var("XPV_GUEST_GRANT").expect("the scenario names a page");
    let (domid, gref) = named.split_once('/').expect("DOMID/GREF");
    (DomId(domid.parse().expect("a number")), GrantRef(gref.parse().expect("a number")))
}

/// Xen refuses to copy from a mapped frame of another domain: the copy must go through a local buffer.
#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run guest-grants")]
fn mapped_page_of_another_domain_is_copied_through_a_buffer() {
    let xen = xen();
    let (domid, gref) = guests_page();
    let mapping = xen.map(domid, &[gref], Access::ReadWrite).expect("maps");
    let mapped = |offset| CopyPtr::Memory(mapping.slice(0, offset, 7).expect("inside"));
    mapping.slice(0, 2000, 7).expect("inside").copy_from(b"payload");

    let own = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    let granted = |offset| CopyPtr::Grant { domid: SELF, gref: own.refs()[0], offset };
    let mut ops = [
        CopyOp::new(mapped(2000), granted(0), 7),
        CopyOp::new(CopyPtr::Grant { domid, gref, offset: 2000 }, granted(10), 7),
        CopyOp::new(granted(0), mapped(3000), 7),
    ];
    xen.copy(&mut ops).expect("the batch is tried");
    assert_eq!(ops.map(|op| op.status), [Status::OKAY; 3]);
    let mut bytes = [0u8; 17];
    own.slice(0, 17).expect("inside").copy_to(&mut bytes[..]);
    assert_eq!(&bytes, b"payload\0\0\0payload");
    assert_eq!(read(&mapping, 0, 3000, 7), b"payload");
    println!("copied through a mapping of domain {domid}");
}

/// Direct I/O: the kernel accepts a mapped grant like any other memory.
#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run guest-grants")]
fn direct_read_into_a_mapped_page_of_another_domain_fills_it() {
    let xen = xen();
    let (domid, gref) = guests_page();
    let disk = std::env::var("XPV_BLOCK_DEVICE").expect("the scenario names a disk");
    let mut disk = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(disk).expect("opens");
    let mapping = xen.map(domid, &[gref], Access::ReadWrite).expect("maps");
    let mut page = VolatileSlice::from(mapping.slice(0, 0, 4096).expect("inside"));
    assert_eq!(disk.read_volatile(&mut page).expect("reads"), 4096);
    assert_eq!(read(&mapping, 0, 510, 2), [0x55, 0xaa], "the partition table's signature");
    println!("read into a page of domain {domid}");
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn event_sent_at_either_end_is_taken_at_the_other() {
    let xen = xen();
    let unbound = xen.alloc_unbound(SELF).expect("alloc_unbound");
    let bound = xen.bind_interdomain(SELF, unbound.port()).expect("bind_interdomain");
    assert!(readable(bound.as_fd()), "the end that binds starts pending");
    assert!(bound.take().expect("takes"));
    assert!(!bound.take().expect("takes"));
    bound.notify().expect("notifies");
    bound.notify().expect("notifies");
    assert!(readable(unbound.as_fd()));
    assert!(unbound.take().expect("takes"));
    unbound.notify().expect("notifies");
    assert!(readable(bound.as_fd()));
    assert!(bound.take().expect("takes"));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn bind_to_an_unknown_port_or_domain_names_which() {
    let xen = xen();
    assert!(matches!(
        xen.bind_interdomain(SELF, EventPort(3000)),
        Err(event_channel::Error::NoSuchPort { .. })
    ));
    assert!(matches!(
        xen.bind_interdomain(DomId(999), EventPort(1)),
        Err(event_channel::Error::NoSuchDomain(DomId(999)))
    ));
    assert!(matches!(
        xen.map(DomId(999), &[GrantRef(8)], Access::ReadOnly),
        Err(grant_table::Error::NoSuchDomain(DomId(999)))
    ));
}

#[test]
#[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run on-xen")]
fn page_still_mapped_after_its_grant_ended_keeps_its_bytes() {
    let xen = xen();
    let shared = xen.share(SELF, 1, Access::ReadWrite).expect("shares");
    write(&shared, 0, b"mine");
    let mapping = xen.map(SELF, shared.refs(), Access::ReadOnly).expect("maps");
    shared.end().expect("ends");
    // The kernel must not have allocated the page to these.
    let others = (0..8).map(|_| xen.share(SELF, 4, Access::ReadWrite).expect("shares"));
    let others: Vec<_> = others.inspect(|other| write(other, 0, &[0xee; 4096])).collect();
    assert_eq!(read(&mapping, 0, 0, 4), b"mine");
    drop(others);
}
