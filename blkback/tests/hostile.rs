//! Frontends that lie, race and flood: the device alone is closed, and nobody else notices.
//!
//! The attacks are in `hostile/attacks.rs`, by name, over a [`Platform`]: threads on the local hypervisor, or a guest of a
//! real Xen host, where `hostile xen::ATTACK` is one attack on its dom0 (`tests/xen/run hostile-front`), in a
//! build for such a guest (`--cfg xen_host`).

#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/local.rs"]
mod in_threads;
#[path = "hostile/xen.rs"]
mod on_xen;

use blkfront::Disk;
use testkit::FrontendDevice;
use testkit::block::{RawFrontend, options};

/// A backend, a device of the attacker's, and one of another domain's.
trait Platform {
    /// The attacker's device, waiting for its frontend.
    fn attacked(&self) -> FrontendDevice;
    /// Another device on the same backend.
    fn other(&self) -> FrontendDevice;
    /// The attacker says that it uses the same pages again, so that they stay mapped.
    fn persistent(&self) -> bool;
    /// The attacker's device was closed, with an error of these words.
    fn is_closed(&self, words: &str);
    /// How often the attacker's ring woke the backend, where that can be seen.
    fn wakeups(&self) -> Option<u64>;
    /// Ends the attacker's device in order; then nothing of the attacker's is mapped any more.
    fn nothing_is_held(&mut self, raw: RawFrontend);
}

/// The other device takes data and gives it back.
fn others_are_served(platform: &dyn Platform) {
    let mut disk = open(&platform.other());
    disk.write_at(4096, &[5; 8192]).unwrap();
    let mut read = [0; 8192];
    disk.read_at(4096, &mut read).unwrap();
    assert!(read == [5; 8192]);
    disk.close().unwrap();
}

fn open(device: &FrontendDevice) -> Disk {
    Disk::open_with(device.hv.clone(), device.store(), device.device.id, options()).unwrap()
}

macro_rules! attacks {
    ($($attack:ident)*) => {
        mod local { $(
            #[test]
            fn $attack() { crate::attacks::$attack(&mut *crate::in_threads::platform(false)); }
        )* }
        mod persistent { $(
            #[test]
            fn $attack() { crate::attacks::$attack(&mut *crate::in_threads::platform(true)); }
        )* }
        mod xen { $(
            #[test]
            #[cfg_attr(not(xen_host), ignore = "needs a guest of a Xen host: tests/xen/run hostile-front")]
            fn $attack() { crate::attacks::$attack(&mut *crate::on_xen::platform()); }
        )* }
    };
}

attacks! {
    a_producer_index_that_ran_away_closes_the_device
    a_producer_index_that_runs_backwards_closes_the_device
    grants_that_cannot_be_mapped_fail_their_request_alone
    requests_that_make_no_sense_are_answered
    a_page_revoked_in_flight_is_quarantined
    responses_leave_no_byte_unwritten
    a_racing_mutator_harms_nobody
    a_storm_of_events_is_slowed
    a_flood_of_writes_to_the_state_disturbs_nobody
    a_frontend_that_vanishes_in_flight_is_closed
    keys_of_any_form_are_refused_by_name_and_may_be_mended
    keys_rewritten_while_connecting_harm_nobody
}
