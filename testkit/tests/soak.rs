//! The randomised soak of [`testkit::soak`] on a machine in threads: backends' control loops, and frontends in the hands of
//! the test. A domain is killed by cutting its connections to the store, so that it writes nothing more, and then dropping
//! all that it has.
//!
//! `XPV_SOAK_OPERATIONS=100000 cargo test --release -p testkit --test soak` takes minutes. A failure says how to repeat it.

#[path = "soak/dom0.rs"]
mod dom0;
#[path = "soak/frontends.rs"]
mod frontends;
#[path = "soak/machine.rs"]
mod machine;
#[path = "soak/toolstack.rs"]
mod toolstack;

use machine::Threads;
use testkit::soak::{Settings, run};

/// Operations of a run that nobody asked for more.
const OPERATIONS: usize = 300;

#[test]
fn devices_of_a_random_machine_are_usable_or_gone() {
    run(&mut Threads::new(), Settings::from_environment(OPERATIONS));
}
