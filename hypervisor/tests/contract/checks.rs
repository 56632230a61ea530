//! The checks of the contract: each panics if it is violated.

use super::Pair;
use event_channel::WaitChannel;
use grant_table::{
    Access, CopyOp, CopyPtr, GrantTable, MapOp, Mapping, OwnedPage, PageAcceptor, PageDonor, Shared,
    SharedSlice, TransferOp,
};
use hypervisor::local::Domain;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::grant::Status;
use ring_abi::shm::Memory;
use ring_abi::{EventPort, GrantRef, PAGE_SIZE};

impl Pair {
    fn share(&self, pages: usize) -> Shared {
        self.front.share(self.back.domid(), pages, Access::ReadWrite).expect("share")
    }
}

fn bytes(slice: SharedSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes[..]);
    bytes
}

fn fill(slice: SharedSlice<'_>, byte: u8) {
    slice.copy_from(&vec![byte; slice.len()][..]);
}

fn page_address(memory: &impl Memory, page: usize) -> *mut u8 {
    memory.base().as_ptr().wrapping_add(page * PAGE_SIZE)
}

/// Waits for at most 10 s until the channel's descriptor is readable.
fn readable(channel: &dyn WaitChannel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(10_000u16)).expect("poll") == 1
}

fn is_readable_now(channel: &dyn WaitChannel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
}

pub(crate) fn shared_pages_are_zeroed_and_consecutive(pair: &Pair) {
    let shared = pair.share(4);
    assert_eq!((shared.pages(), shared.refs().len()), (4, 4));
    assert_eq!(shared.base().as_ptr() as usize % PAGE_SIZE, 0);
    assert!(bytes(shared.slice(0, 4 * PAGE_SIZE).unwrap()).iter().all(|byte| *byte == 0));
    for page in 0..4 {
        let slice = shared.slice(page * PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(slice.as_ptr(), page_address(&shared, page));
    }
    assert!(shared.refs().iter().all(|gref| *gref >= GrantRef::FIRST_FREE), "reserved references");
    assert!(shared.slice(1, 4 * PAGE_SIZE).is_none());
}

pub(crate) fn reused_pages_are_zeroed(pair: &Pair) {
    for _ in 0..3 {
        let shared = pair.share(3);
        let all = shared.slice(0, 3 * PAGE_SIZE).unwrap();
        assert!(bytes(all).iter().all(|byte| *byte == 0));
        fill(all, 0xa5);
    }
}

pub(crate) fn page_written_by_one_side_is_read_by_the_other(pair: &Pair) {
    let shared = pair.share(2);
    let mapping = pair.back.map(pair.front.domid(), shared.refs(), Access::ReadWrite).expect("map");
    assert_eq!(mapping.pages(), 2);
    fill(shared.slice(PAGE_SIZE + 10, 5).unwrap(), 7);
    assert_eq!(bytes(mapping.slice(1, 9, 7).unwrap()), [0, 7, 7, 7, 7, 7, 0]);
    fill(mapping.slice(0, PAGE_SIZE - 3, 3).unwrap(), 9);
    assert_eq!(bytes(shared.slice(PAGE_SIZE - 4, 5).unwrap()), [0, 9, 9, 9, 0]);
    assert!(mapping.slice(0, 1, PAGE_SIZE).is_none());
    assert!(mapping.slice(2, 0, 1).is_none());
    assert!(mapping.slice(0, usize::MAX, 2).is_none());
}

pub(crate) fn map_with_an_invalid_reference_maps_nothing(pair: &Pair) {
    let shared = pair.share(2);
    let wrong = GrantRef(u32::MAX - 1);
    let refs = [shared.refs()[0], wrong, shared.refs()[1]];
    let error = pair.back.map(pair.front.domid(), &refs, Access::ReadWrite).expect_err("a wrong reference");
    assert!(
        matches!(error, grant_table::Error::Grant { gref, status, .. } if gref == wrong && !status.is_okay()),
        "{error}"
    );
    shared.end().expect("no page is mapped any more");
}

pub(crate) fn batch_maps_each_mapping_or_leaves_it_empty(pair: &Pair) {
    let shared = pair.share(3);
    let read_only = pair.front.share(pair.back.domid(), 1, Access::ReadOnly).expect("share");
    (0..3).for_each(|page| fill(shared.slice(page * PAGE_SIZE, 1).unwrap(), page as u8 + 1));
    let wrong = GrantRef(u32::MAX - 1);
    let refs = shared.refs();
    let op = |mapping, gref, access| MapOp { gref, mapping, access };
    let ops = [
        op(2, refs[0], Access::ReadWrite),
        op(2, refs[2], Access::ReadWrite),
        op(0, refs[1], Access::ReadOnly),
        op(0, wrong, Access::ReadOnly),
        op(3, read_only.refs()[0], Access::ReadWrite),
        op(1, refs[1], Access::ReadOnly),
    ];
    let mut mappings: Vec<_> = (0..4).map(|_| Mapping::empty()).collect();
    for _ in 0..2 {
        let outcome = pair.back.map_batch(pair.front.domid(), &ops, &mut mappings);
        assert!(
            matches!(outcome, Err(grant_table::Error::Grant { gref, .. }) if gref == wrong),
            "{outcome:?}"
        );
        assert_eq!(mappings.iter().map(Mapping::pages).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let first = |mapping: usize, page| bytes(mappings[mapping].slice(page, 0, 1).unwrap())[0];
        assert_eq!([first(2, 0), first(2, 1), first(1, 0)], [1, 3, 2]);
        pair.back.unmap_batch(pair.front.domid(), &[0, 2, 1], &mut mappings);
        assert!(mappings.iter().all(|mapping| mapping.pages() == 0));
    }
    for pages in [shared, read_only] {
        pages.end().expect("no page is mapped any more");
    }
}

pub(crate) fn read_only_grant_is_not_mapped_for_writing(pair: &Pair) {
    let shared = pair.front.share(pair.back.domid(), 1, Access::ReadOnly).expect("share");
    let peer = pair.front.domid();
    assert!(pair.back.map(peer, shared.refs(), Access::ReadWrite).is_err());
    fill(shared.slice(0, 1).unwrap(), 3);
    let mapping = pair.back.map(peer, shared.refs(), Access::ReadOnly).expect("map for reading");
    assert_eq!(bytes(mapping.slice(0, 0, 1).unwrap()), [3]);
    drop(mapping);
    shared.end().expect("no page is mapped any more");
}

pub(crate) fn page_mapped_twice_stays_mapped_until_both_are_dropped(pair: &Pair) {
    let shared = pair.share(1);
    let map = |access| pair.back.map(pair.front.domid(), shared.refs(), access).expect("map");
    let reader = map(Access::ReadOnly);
    let writer = map(Access::ReadWrite);
    drop(reader);
    fill(writer.slice(0, 5, 1).unwrap(), 1);
    let reader = map(Access::ReadOnly);
    drop(writer);
    assert_eq!(bytes(reader.slice(0, 5, 1).unwrap()), [1]);
    drop(reader);
    shared.end().expect("no page is mapped any more");
}

pub(crate) fn ring_is_mapped_at_consecutive_addresses(pair: &Pair) {
    let shared = pair.share(4);
    let ring = pair.back.map_contiguous(pair.front.domid(), shared.refs(), Access::ReadWrite).expect("map");
    assert_eq!(ring.len(), 4 * PAGE_SIZE);
    for page in 0..4 {
        fill(shared.slice(page * PAGE_SIZE, 8).unwrap(), page as u8 + 1);
    }
    for page in 0..4 {
        assert_eq!(word(&ring, page), u64::from_ne_bytes([page as u8 + 1; 8]));
    }
    drop(ring);
    shared.end().expect("no page is mapped any more");
}

pub(crate) fn scattered_pages_are_mapped_at_consecutive_addresses(pair: &Pair) {
    let shared = [pair.share(1), pair.share(2), pair.share(1)];
    let refs = [shared[2].refs()[0], shared[0].refs()[0], shared[1].refs()[1]];
    fill(shared[2].slice(0, 8).unwrap(), 1);
    fill(shared[0].slice(0, 8).unwrap(), 2);
    fill(shared[1].slice(PAGE_SIZE, 8).unwrap(), 3);
    let ring = pair.back.map_contiguous(pair.front.domid(), &refs, Access::ReadWrite).expect("map");
    for page in 0..3 {
        assert_eq!(word(&ring, page), u64::from_ne_bytes([page as u8 + 1; 8]));
    }
    drop(ring);
    for shared in shared {
        shared.end().expect("no page is mapped any more");
    }
}

/// The first word of a page of a ring.
fn word(ring: &impl Memory, page: usize) -> u64 {
    let at = std::ptr::NonNull::new(page_address(ring, page)).unwrap();
    // SAFETY: a page of the ring, which lives as long as it does.
    #[allow(unsafe_code)]
    unsafe { ring_abi::shm::Slot::new(at, PAGE_SIZE) }.load64(0)
}

pub(crate) fn map_of_an_ended_grant_is_an_error(pair: &Pair) {
    let shared = pair.share(1);
    let refs = shared.refs().to_vec();
    shared.end().expect("it is not mapped");
    assert!(pair.back.map(pair.front.domid(), &refs, Access::ReadOnly).is_err());
}

pub(crate) fn page_still_mapped_after_its_grant_ended_is_quarantined(pair: &Pair) {
    let shared = pair.share(1);
    let mapping = pair.back.map(pair.front.domid(), shared.refs(), Access::ReadWrite).expect("map");
    fill(mapping.slice(0, 0, 64).unwrap(), 0x11);
    drop(shared);
    // Pages that the front shares now are other pages.
    let others: Vec<_> = (0..8).map(|_| pair.share(2)).collect();
    fill(mapping.slice(0, 0, PAGE_SIZE).unwrap(), 0xee);
    for shared in &others {
        assert!(bytes(shared.slice(0, 2 * PAGE_SIZE).unwrap()).iter().all(|byte| *byte == 0));
    }
    assert_eq!(bytes(mapping.slice(0, 0, 2).unwrap()), [0xee; 2]);
}

fn grant<'a>(pair: &Pair, shared: &Shared, page: usize, offset: u16) -> CopyPtr<'a> {
    CopyPtr::Grant { domid: pair.front.domid(), gref: shared.refs()[page], offset }
}

pub(crate) fn copy_to_and_from_a_grant_moves_the_bytes(pair: &Pair) {
    let shared = pair.share(2);
    let mut memory = *b"from the back";
    let place = CopyPtr::Memory(SharedSlice::from(&mut memory[..]));
    let mut ops = [CopyOp::new(place, grant(pair, &shared, 1, 100), 13)];
    pair.back.copy(&mut ops).expect("copy");
    assert_eq!(ops[0].status, Status::OKAY);
    assert_eq!(bytes(shared.slice(PAGE_SIZE + 99, 15).unwrap()), *b"\0from the back\0");

    let mut memory = [0; 64];
    let slices = memory.split_at_mut(4);
    let a = SharedSlice::from(slices.0);
    let b = SharedSlice::from(slices.1);
    let mut ops = [
        CopyOp::new(grant(pair, &shared, 1, 105), CopyPtr::Memory(a), 3),
        CopyOp::new(grant(pair, &shared, 1, 109), CopyPtr::Memory(b), 4),
    ];
    pair.back.copy(&mut ops).expect("copy");
    assert!(ops.iter().all(|op| op.status.is_okay()));
    assert_eq!(memory[..9], *b"the\0back\0");
    shared.end().expect("no page is mapped any more");
}

pub(crate) fn failed_copy_does_not_stop_the_others(pair: &Pair) {
    let shared = pair.share(1);
    let readonly = pair.front.share(pair.back.domid(), 1, Access::ReadOnly).expect("share");
    fill(shared.slice(0, 8).unwrap(), 5);
    let mut memory = [0; 40];
    let (dest, source) = memory.split_at_mut(20);
    let dest = SharedSlice::from(dest);
    let source = SharedSlice::from(source);
    let wrong = CopyPtr::Grant { domid: pair.front.domid(), gref: GrantRef(1 << 24), offset: 0 };
    let mut ops = [
        CopyOp::new(wrong, CopyPtr::Memory(dest), 4),
        CopyOp::new(grant(pair, &shared, 0, 4090), CopyPtr::Memory(dest), 8),
        CopyOp::new(CopyPtr::Memory(source), grant(pair, &readonly, 0, 0), 4),
        CopyOp::new(grant(pair, &shared, 0, 0), CopyPtr::Memory(dest), 4),
    ];
    pair.back.copy(&mut ops).expect("the batch was tried");
    let failed: Vec<_> = ops.iter().map(|op| !op.status.is_okay()).collect();
    assert_eq!(failed, [true, true, true, false]);
    assert_eq!(memory[..5], [5, 5, 5, 5, 0]);
}

pub(crate) fn copy_between_grants_moves_the_bytes(pair: &Pair) {
    let from = pair.share(1);
    let to = pair.share(1);
    fill(from.slice(0, PAGE_SIZE).unwrap(), 0x42);
    let mut ops = [CopyOp::new(grant(pair, &from, 0, 0), grant(pair, &to, 0, 0), PAGE_SIZE as u16)];
    pair.back.copy(&mut ops).expect("copy");
    assert_eq!(ops[0].status, Status::OKAY);
    assert!(bytes(to.slice(0, PAGE_SIZE).unwrap()).iter().all(|byte| *byte == 0x42));
}

/// Both ends of a channel, after the initial event of the one that binds was taken.
fn channel(pair: &Pair) -> (Box<dyn WaitChannel>, Box<dyn WaitChannel>) {
    let front = pair.front.alloc_unbound(pair.back.domid()).expect("alloc_unbound");
    let back = pair.back.bind_interdomain(pair.front.domid(), front.port()).expect("bind_interdomain");
    assert!(readable(&*back), "the end that binds starts pending");
    assert!(back.take().expect("take"));
    (front, back)
}

pub(crate) fn events_not_taken_merge(pair: &Pair) {
    let (front, back) = channel(pair);
    for (from, to) in [(&front, &back), (&back, &front)] {
        assert!(!to.take().expect("take"));
        assert!(!is_readable_now(&**to));
        for _ in 0..3 {
            from.notify().expect("notify");
        }
        assert!(readable(&**to));
        assert!(to.take().expect("take"));
        // On Xen an event sent after the first was delivered becomes pending when that one is taken.
        let again = (0..3).take_while(|_| to.take().expect("take")).count();
        assert!(again <= 1, "events that were not taken merge");
        from.notify().expect("notify");
        assert!(readable(&**to), "events after a take arrive");
        assert!(to.take().expect("take"));
    }
}

pub(crate) fn masked_end_is_readable_for_one_more_event_at_most(pair: &Pair) {
    let (front, back) = channel(pair);
    for (from, to) in [(&front, &back), (&back, &front)] {
        to.mask();
        let wakeups = (0..20).filter(|_| {
            from.notify().expect("notify");
            let readable = is_readable_now(&**to);
            assert!(!to.take().expect("take"), "a masked end takes no event");
            readable
        });
        assert!(wakeups.count() <= 1);
        assert!(!is_readable_now(&**to));
        // An event sent meanwhile is remembered, or is delivered now.
        let remembered = to.unmask().expect("unmask");
        assert!(remembered || readable(&**to) && to.take().expect("take"));
        from.notify().expect("notify");
        assert!(readable(&**to), "events after the mask arrive");
        while to.take().expect("take") {}
    }
}

pub(crate) fn event_taken_while_masked_is_remembered_once(pair: &Pair) {
    let (front, back) = channel(pair);
    for (from, to) in [(&front, &back), (&back, &front)] {
        from.notify().expect("notify");
        assert!(readable(&**to));
        to.mask();
        assert!(!to.take().expect("take"));
        assert!(!is_readable_now(&**to));
        assert!(to.unmask().expect("unmask"));
        while is_readable_now(&**to) {
            let _ = to.take().expect("take");
        }
        to.mask();
        assert!(!to.unmask().expect("unmask"), "no event since the last mask");
        assert!(!to.unmask().expect("unmask"), "it is not masked");
    }
}

pub(crate) fn only_the_end_that_binds_starts_pending(pair: &Pair) {
    let (front, _back) = channel(pair);
    assert!(!front.take().expect("take"), "the end that allocated the port does not");
}

pub(crate) fn bind_to_a_port_that_is_not_allocated_is_an_error(pair: &Pair) {
    let bind = |port| pair.back.bind_interdomain(pair.front.domid(), port).map(|_| ());
    let error = bind(EventPort(1_000)).expect_err("not allocated");
    assert!(matches!(error, event_channel::Error::NoSuchPort { port: EventPort(1_000), .. }), "{error}");
    let front = pair.front.alloc_unbound(pair.back.domid()).expect("alloc_unbound");
    let port = front.port();
    drop(front);
    assert!(bind(port).is_err(), "freed");
}

pub(crate) fn bind_to_a_bound_port_is_an_error(pair: &Pair) {
    let (front, _back) = channel(pair);
    assert!(pair.back.bind_interdomain(pair.front.domid(), front.port()).is_err());
}

/// Of hypervisors where user space can transfer pages.
pub(crate) fn transfer_moves_a_page_to_the_accepting_entry(acceptor: &Domain, donor: &Domain) {
    let front = acceptor.domid();
    let back = donor.domid();
    let mut entries = acceptor.accept_transfer(back, 2).expect("accept_transfer");
    assert_eq!(acceptor.balloon_out(back, 3).expect("balloon_out"), 3);
    let mut pages = Vec::new();
    donor.populate(front, 10, &mut pages).expect("populate");
    assert_eq!(pages.len(), 3);
    let page = pages.pop().unwrap();
    fill(page.slice(0, PAGE_SIZE).unwrap(), 0x77);
    let transfer = |page: &OwnedPage, frame, entry: usize, refs: &[GrantRef]| {
        let mut ops = [TransferOp { frame, ..TransferOp::new(page, front, refs[entry]) }];
        donor.transfer(&mut ops).expect("transfer");
        ops[0].status.ok()
    };
    assert!(entries.take(0).expect("take").is_none());
    assert!(transfer(&page, 1 << 40, 0, entries.refs()).is_err(), "a frame that the back does not own");
    assert_eq!(transfer(&page, page.frame(), 0, entries.refs()), Ok(()));
    assert!(transfer(&page, page.frame(), 1, entries.refs()).is_err(), "transferred twice");
    assert!(
        transfer(&pages[0], pages[0].frame(), 0, entries.refs()).is_err(),
        "the entry has a page already"
    );
    drop(page);
    let got = entries.take(0).expect("take").expect("a page");
    assert!(bytes(got.slice(0, PAGE_SIZE).unwrap()).iter().all(|byte| *byte == 0x77));
    assert!(entries.take(0).expect("take").is_none());
    drop(got);
    donor.populate(front, 10, &mut pages).expect("populate");
    assert_eq!(pages.len(), 2, "the transferred page is the front's");
    assert_eq!(acceptor.balloon_in(back).expect("balloon_in"), 2);
}
