//! Tests of the local hypervisor beyond the contract: processes that are killed, hostile clients, races of grants, and a broker
//! that is killed and succeeded.

#[path = "local/death.rs"]
mod death;
#[path = "local/hostile.rs"]
mod hostile;
#[path = "local/races.rs"]
mod races;
#[path = "local/succession.rs"]
mod succession;

use event_channel::WaitChannel;
use grant_table::SharedSlice;
use hypervisor::local::Sandbox;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::time::Duration;

/// The timeout of every wait, long enough for a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A machine of two guests and domain 0; no process has joined.
pub(crate) fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new().expect("a broker");
    for name in ["one", "two"] {
        sandbox.control().create(name, nix::unistd::getuid().as_raw(), None).expect("create");
    }
    sandbox
}

/// Waits until an event is pending or the other end is closed.
pub(crate) fn readable(channel: &dyn WaitChannel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(TIMEOUT).expect("a timeout")).expect("poll") == 1
}

pub(crate) fn byte(slice: Option<SharedSlice<'_>>) -> u8 {
    let mut byte = [0u8];
    slice.expect("inside").copy_to(&mut byte[..]);
    byte[0]
}
