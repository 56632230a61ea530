//! The contract of `GrantTable` and `EventChannels`, checked against each implementation.
//!
//! The checks are in `contract/checks.rs`, over a pair of domains: `front` shares pages and allocates event channels,
//! and `back` maps and binds. Both may be the same domain, as in a Xen control domain that grants to itself. On a Xen
//! host this test program alone suffices: `contract xen::` runs the checks of `xen`, in a build for one
//! (`--cfg xen_host`).

#[path = "contract/checks.rs"]
mod checks;

use hypervisor::Hypervisor;
use ring_abi::DomId;
use std::sync::Arc;

/// Two domains, or the same one twice.
pub(crate) struct Pair {
    /// Shares pages and allocates event channels.
    pub(crate) front: Arc<dyn Hypervisor>,
    /// Maps, copies and binds.
    pub(crate) back: Arc<dyn Hypervisor>,
    /// Keeps the platform running.
    pub(crate) _platform: Box<dyn std::any::Any>,
}

/// A guest and domain 0.
fn local() -> Pair {
    let sandbox = hypervisor::local::Sandbox::new().expect("a broker");
    let back = sandbox.join(DomId::DOM0).expect("domain 0");
    let front = sandbox.join(DomId(1)).expect("a guest");
    Pair { front, back, _platform: Box::new(sandbox) }
}

/// Domain 0 and itself, as in a Xen control domain.
fn loopback() -> Pair {
    let sandbox = hypervisor::local::Sandbox::new().expect("a broker");
    let dom0 = sandbox.join(DomId::DOM0).expect("domain 0");
    Pair { front: dom0.clone(), back: dom0, _platform: Box::new(sandbox) }
}

/// The control domain of a real Xen host and itself: `tests/xen/run contract`.
fn xen() -> Pair {
    let dom0: Arc<dyn Hypervisor> = Arc::new(hypervisor::xen::Xen::open().expect("the device nodes"));
    Pair { front: dom0.clone(), back: dom0, _platform: Box::new(()) }
}

macro_rules! contract {
    ($($check:ident)*) => {
        mod local { $(#[test] fn $check() { crate::checks::$check(&crate::local()); })* }
        mod loopback { $(#[test] fn $check() { crate::checks::$check(&crate::loopback()); })* }
        mod xen { $(
            #[test]
            #[cfg_attr(not(xen_host), ignore = "needs a Xen host: tests/xen/run contract")]
            fn $check() { crate::checks::$check(&crate::xen()); }
        )* }
    };
}

contract! {
    shared_pages_are_zeroed_and_consecutive
    reused_pages_are_zeroed
    page_written_by_one_side_is_read_by_the_other
    map_with_an_invalid_reference_maps_nothing
    batch_maps_each_mapping_or_leaves_it_empty
    read_only_grant_is_not_mapped_for_writing
    page_mapped_twice_stays_mapped_until_both_are_dropped
    ring_is_mapped_at_consecutive_addresses
    scattered_pages_are_mapped_at_consecutive_addresses
    map_of_an_ended_grant_is_an_error
    page_still_mapped_after_its_grant_ended_is_quarantined
    copy_to_and_from_a_grant_moves_the_bytes
    failed_copy_does_not_stop_the_others
    copy_between_grants_moves_the_bytes
    events_not_taken_merge
    masked_end_is_readable_for_one_more_event_at_most
    event_taken_while_masked_is_remembered_once
    only_the_end_that_binds_starts_pending
    bind_to_a_port_that_is_not_allocated_is_an_error
    bind_to_a_bound_port_is_an_error
}

#[test]
fn transfer_moves_a_page_to_the_accepting_entry() {
    let sandbox = hypervisor::local::Sandbox::new().expect("a broker");
    let dom0 = sandbox.join(DomId::DOM0).expect("domain 0");
    let guest = sandbox.join(DomId(1)).expect("a guest");
    checks::transfer_moves_a_page_to_the_accepting_entry(&guest, &dom0);
    checks::transfer_moves_a_page_to_the_accepting_entry(&dom0, &dom0);
}
