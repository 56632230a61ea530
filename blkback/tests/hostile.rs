//! Hostile frontends: the backend closes the attacker's device, and serves all others on.
//!
//! The attacks are functions in `hostile/attacks.rs`, `hostile/indirect.rs` and `hostile/queues.rs`. Each runs on every [`Platform`]: on the local hypervisor with all
//! domains in threads, and in a guest of a real Xen host, where `hostile xen::ATTACK` attacks the backend in dom0
//! (`tests/xen/run hostile-front`; built with `--cfg xen_host`).

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/local.rs"]
mod in_threads;
#[path = "hostile/indirect.rs"]
mod indirect;
#[path = "hostile/xen.rs"]
mod on_xen;
#[path = "hostile/queues.rs"]
mod queues;

use blkfront::Disk;
use testkit::FrontendDevice;
use testkit::block::{RawFrontend, options};

/// A backend, the attacker's device, and a device of another domain or of another number.
trait Platform {
    /// The attacker's device, waiting for its frontend.
    fn attacked(&self) -> FrontendDevice;
    /// Another device on the same backend.
    fn other(&self) -> FrontendDevice;
    /// Whether the attacker advertises persistent grants, so that its pages stay mapped.
    fn persistent(&self) -> bool;
    /// Asserts that the backend closed the attacker's device and reported an error that contains `words`.
    fn assert_closed(&self, words: &str);
    /// How often the attacker's ring woke the backend; `None` on a platform that cannot count it.
    fn wakeups(&self) -> Option<u64>;
    /// Closes the attacker's device, and asserts that the backend maps none of the attacker's pages any more.
    fn assert_unmapped(&mut self, raw: RawFrontend);
}

/// Asserts that the other device returns the data written to it.
fn assert_others_served(platform: &dyn Platform) {
    let mut disk = open(&platform.other());
    disk.write_at(4096, &[5; 8192]).unwrap();
    let mut read = [0; 8192];
    disk.read_at(4096, &mut read).unwrap();
    assert!(read == [5; 8192]);
    disk.close().unwrap();
}

fn open(device: &FrontendDevice) -> Disk {
    let hv = &device.hv;
    Disk::open_with(hv.clone(), hv.clone(), hv.clone(), device.device.id, options()).unwrap()
}

testkit::attacks! {
    variant = persistent, ignored = "needs a guest of a Xen host: tests/xen/run hostile-front";
    producer_index_beyond_the_ring_closes_the_device
    producer_index_that_decreases_closes_the_device
    grants_that_cannot_be_mapped_fail_their_request_alone
    invalid_requests_are_answered_with_an_error
    page_revoked_in_flight_is_quarantined
    response_overwrites_every_byte_of_the_slot_header
    slots_overwritten_during_reads_are_all_answered
    event_storm_wakes_the_backend_at_a_limited_rate
    state_written_in_a_loop_leaves_other_devices_served
    frontend_that_vanishes_in_flight_is_closed
    invalid_key_is_named_and_may_be_corrected
    invalid_indirect_requests_are_answered_with_an_error
    pages_of_segments_revoked_in_mid_fetch_fail_their_request_alone
    segments_overwritten_while_they_are_fetched_are_all_answered
    invalid_keys_of_queues_are_named_and_may_be_corrected
    fault_on_one_of_several_rings_closes_the_device
    keys_rewritten_while_connecting_leave_the_backend_working
}
