//! Grants that are ended while they are in use.

use super::{byte, sandbox};
use grant_table::{Access, CopyOp, CopyPtr, GrantTable, SharedSlice};
use hypervisor::local::{Domain, Options};
use ring_abi::testing::StopOnDrop;
use ring_abi::{DomId, PAGE_SIZE};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

const DOM0: DomId = DomId::DOM0;
const ONE: DomId = DomId(1);

fn pair() -> (hypervisor::local::Sandbox, Arc<Domain>, Arc<Domain>) {
    let sandbox = sandbox();
    let small = Options { arena_pages: 64 };
    let dom0 = sandbox.join_with(DOM0, small).expect("join");
    let guest = sandbox.join_with(ONE, small).expect("join");
    (sandbox, dom0, guest)
}

/// XSA-396.
#[test]
fn page_whose_grant_ended_during_copies_is_not_written_any_more() {
    let (_sandbox, dom0, guest) = pair();
    let stop = AtomicBool::new(false);
    let first = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let gref = first.refs()[0];
    let started = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0xee; PAGE_SIZE];
            let source = CopyPtr::Memory(SharedSlice::from(&mut bytes[..]));
            let dest = CopyPtr::Grant { domid: ONE, gref, offset: 0 };
            // As many as are pinned at a time, so that the grant ends while some are pinned.
            let mut ops = [CopyOp::new(source, dest, 4096); 32];
            dom0.copy(&mut ops).expect("copy");
            started.wait();
            while !stop.load(Ordering::Relaxed) {
                dom0.copy(&mut ops).expect("copy");
            }
        });
        started.wait();
        let _stop = StopOnDrop(&stop);
        drop(first);
        for _ in 0..3_000 {
            // Granted read-only, so that no copy may write to it, although it may be the same page.
            let shared = guest.share(DOM0, 1, Access::ReadOnly).expect("share");
            for at in (0..PAGE_SIZE).step_by(64) {
                assert_eq!(byte(shared.slice(at, 1)), 0, "written after the grant's end");
            }
            drop(shared);
            let open = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
            // Until the other thread writes, or for at most 1,000 reads.
            (0..1_000).find(|_| byte(open.slice(PAGE_SIZE - 1, 1)) != 0);
        }
    });
    drop(guest.share(DOM0, 1, Access::ReadWrite).expect("share"));
    assert_eq!(guest.quarantined(DOM0), 0);
}

#[test]
fn quarantined_page_is_freed_once_the_peer_unmaps_it() {
    let (_sandbox, dom0, guest) = pair();
    let shared = guest.share(DOM0, 3, Access::ReadWrite).expect("share");
    let mapping = dom0.map(ONE, &shared.refs()[1..2], Access::ReadWrite).expect("map");
    let held = shared.refs()[1];
    let error = shared.end().expect_err("one is mapped");
    assert!(matches!(error, grant_table::Error::Grant { gref, .. } if gref == held), "{error}");
    assert_eq!(guest.quarantined(DOM0), 1);
    assert!(dom0.map(ONE, &[held], Access::ReadOnly).is_ok(), "a pinned page can be pinned again");
    drop(mapping);
    assert!(dom0.map(ONE, &[held], Access::ReadOnly).is_err(), "but not once it was unpinned");
    drop(guest.share(DOM0, 1, Access::ReadWrite).expect("share"));
    assert_eq!(guest.quarantined(DOM0), 0);
}

#[test]
fn arena_that_was_exhausted_is_usable_again_once_all_is_dropped() {
    let (_sandbox, dom0, guest) = pair();
    for _ in 0..3 {
        let mut all = Vec::new();
        let error = loop {
            match guest.share(DOM0, 1, Access::ReadWrite) {
                Ok(shared) => all.push(shared),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, grant_table::Error::NoSpace(_)), "{error}");
        assert!(all.len() >= 60, "only {} pages of 64", all.len());
        let refs: Vec<_> = all.iter().map(|shared| shared.refs()[0]).collect();
        let mapping = dom0.map(ONE, &refs, Access::ReadWrite).expect("more pages than fit inline");
        assert_eq!(mapping.pages(), all.len());
        drop((mapping, all));
    }
    assert!(guest.share(DOM0, 60, Access::ReadWrite).is_ok());
    assert!(guest.share(DOM0, usize::MAX, Access::ReadWrite).is_err());
}

#[test]
fn page_mapped_by_several_threads_is_unmapped_by_the_last() {
    let (_sandbox, dom0, guest) = pair();
    let shared = guest.share(DOM0, 2, Access::ReadWrite).expect("share");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dom0 = &dom0;
            let refs = shared.refs();
            scope.spawn(move || {
                for round in 0..2_000 {
                    let access = if (round + thread) % 3 == 0 { Access::ReadWrite } else { Access::ReadOnly };
                    let mapping = dom0.map(ONE, refs, access).expect("map");
                    assert_eq!(byte(mapping.slice(1, 0, 1)), 0);
                }
            });
        }
    });
    shared.end().expect("no page is mapped any more");
}
