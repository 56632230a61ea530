//! The randomised soak of [`testkit::soak`] on a machine of processes: `xpv create`, `destroy`, `*-attach` and `*-detach`, and
//! SIGKILL to dom0 and to guests, while disks are written by NBD clients.
//!
//! `XPV_SOAK_OPERATIONS=10000 cargo test --release -p toolstack --test soak` takes minutes. A failure says how to repeat it.

mod common;
#[path = "soak/frames.rs"]
mod frames;
#[path = "soak/machine.rs"]
mod machine;

use machine::Processes;
use testkit::soak::{Settings, run};

/// Operations of a run that nobody asked for more.
const OPERATIONS: usize = 1000;

#[test]
fn devices_of_a_random_machine_are_usable_or_gone() {
    run(&mut Processes::new(), Settings::from_environment(OPERATIONS));
}
