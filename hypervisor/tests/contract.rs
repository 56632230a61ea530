//! What every hypervisor promises at the seam, run against each world.
//!
//! The checks are in `contract/checks.rs`, by name, over a pair of domains: a front side that shares and listens,
//! and a back side that maps and connects. The two may be one and the same domain, as in a Xen control domain that
//! grants to itself. This test program is all that is needed elsewhere: `contract xen::` runs the checks of `xen`,
//! in a build for a Xen host (`--cfg xen_host`).

#[path = "contract/checks.rs"]
mod checks;

use hypervisor::{DomId, Hypervisor};
use std::sync::Arc;

/// Two domains, or twice the same one.
pub(crate) struct Pair {
    /// Shares, and listens.
    pub(crate) front: Arc<dyn Hypervisor>,
    /// Maps, copies and connects.
    pub(crate) back: Arc<dyn Hypervisor>,
    /// What keeps the world going.
    pub(crate) _world: Box<dyn std::any::Any>,
}

/// A guest and domain 0.
fn local() -> Pair {
    let sandbox = hypervisor::local::Sandbox::new().expect("a broker");
    let back = sandbox.join(DomId::DOM0).expect("domain 0");
    let front = sandbox.join(DomId(1)).expect("a guest");
    Pair { front, back, _world: Box::new(sandbox) }
}

/// Domain 0 and itself, as in a Xen control domain.
fn loopback() -> Pair {
    let sandbox = hypervisor::local::Sandbox::new().expect("a broker");
    let dom0 = sandbox.join(DomId::DOM0).expect("domain 0");
    Pair { front: dom0.clone(), back: dom0, _world: Box::new(sandbox) }
}

/// The control domain of a real Xen host and itself: `tests/xen/run contract`.
fn xen() -> Pair {
    let dom0: Arc<dyn Hypervisor> = Arc::new(hypervisor::xen::Xen::open().expect("the device nodes"));
    Pair { front: dom0.clone(), back: dom0, _world: Box::new(()) }
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
    what_one_writes_the_other_reads
    maps_are_all_or_none
    read_only_grants_refuse_writers
    two_mappings_of_one_page_are_released_one_by_one
    a_ring_is_mapped_at_consecutive_addresses
    scattered_pages_are_mapped_at_consecutive_addresses
    ended_grants_are_not_mapped
    pages_still_mapped_are_quarantined
    copies_go_both_ways
    each_copy_has_its_own_status
    copies_between_grants
    events_arrive_and_merge
    the_connecting_end_starts_pending
    only_a_listening_port_is_connected
    a_port_connects_once
    flips_move_pages
}
