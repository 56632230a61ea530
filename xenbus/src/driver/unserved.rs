//! What becomes of a device that its driver could not probe: it is probed again, or closed.

use std::time::Duration;

use ring_abi::xenbus::key;

use super::{DeviceState, Failure, Update};
use crate::{Keys, XenbusState};

/// How long a new device's resources may be in use: by an earlier device's thread or an earlier backend's process,
/// whose end is not waited for.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// The pause between two probes of a device that waits: at first, and once it has waited for [`BUSY`].
pub(super) const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Whether a device that could not be probed is probed again: for a while if the failure may pass, and as long as it takes if
/// another process has what it needs; in any case, and as long
/// as it takes, if an earlier backend has served the device, because closing it would take it from a guest that is using
/// it. An image that is missing when dom0 starts again may be there later.
pub(super) fn is_to_wait(failure: &Failure, waited: Duration, own_state: XenbusState) -> bool {
    use XenbusState::{Connected, InitWait, Initialised};
    matches!(own_state, InitWait | Initialised | Connected)
        || failure.is_held
        || failure.may_pass && waited < BUSY
}

/// The update of a device that is not served: one that is not wanted holds nothing, but its frontend may have yet to close. One
/// that stays Connected is in use, and is told that nobody will serve it.
pub(super) fn unserved(seen: &DeviceState) -> Update {
    use XenbusState::{Closed, Closing, Connected, Initialising, Unknown};
    let is_closed = matches!(seen.other_state, Unknown | Initialising | Closed);
    let is_in_use = seen.own_state == Closing && seen.other_state == Connected;
    let state = if is_closed || is_in_use { Some(Closed) } else { closing(seen) };
    Update { state: state.filter(|_| !seen.online), ..Update::default() }
}

/// Closing, but not over Closed: a frontend that is Closed too would never follow.
pub(super) fn closing(seen: &DeviceState) -> Option<XenbusState> {
    (seen.own_state != XenbusState::Closed).then_some(XenbusState::Closing)
}

/// A backend's keys without those that are written here.
pub(super) fn without_own(keys: &Keys) -> Keys {
    let mut keys = keys.clone();
    keys.remove(key::STATE);
    keys.remove(key::INSTANCE);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn device_that_was_served_is_waited_for_and_never_closed() {
        let busy = Failure::in_use_for_now("");
        let missing = Failure::new(Errno::ENOENT as i32, "");
        for served in [XenbusState::InitWait, XenbusState::Initialised, XenbusState::Connected] {
            assert!(is_to_wait(&busy, BUSY * 1000, served) && is_to_wait(&missing, BUSY * 1000, served));
        }
        assert!(is_to_wait(&busy, Duration::ZERO, XenbusState::Initialising));
        for new in [XenbusState::Initialising, XenbusState::Closing, XenbusState::Closed] {
            assert!(!is_to_wait(&busy, BUSY, new) && !is_to_wait(&missing, Duration::ZERO, new));
            assert!(is_to_wait(&Failure::held_by_another_process(""), BUSY * 1000, new));
        }
    }
}
