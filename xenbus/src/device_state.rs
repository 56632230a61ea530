//! A backend's device as its driver sees it in the store, and what the driver writes in answer: values of
//! [`handshake::back`](crate::handshake::back).

use alloc::string::{String, ToString};
use core::time::Duration;

use ring_abi::xenbus::XenbusState;
use ring_abi::xs_wire::XsError;

use crate::Keys;

/// Both ends of a device, as they are in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The keys at the backend's node: the toolstack's and the backend's own.
    pub own: Keys,
    /// The backend's state in the store: written by the backend, or Closing written by a toolstack.
    pub own_state: XenbusState,
    /// The frontend's state; Closed where its node is removed.
    pub other_state: XenbusState,
    /// The frontend's keys, at most 2048 of them. Read only while the frontend is Initialised or Connected and the
    /// backend is not Connected or is probed; empty otherwise.
    pub other: Keys,
    /// The toolstack wants this device: `online` is absent or not 0.
    pub online: bool,
}

/// What a device writes after it has seen a [`DeviceState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Keys written below the backend's node, in one transaction with the state.
    pub keys: Keys,
    /// The backend's new state; `None` does not change it.
    pub state: Option<XenbusState>,
    /// Writes the state even where it does not change, which fires the frontend's watch: how a frontend learns of a
    /// new size.
    pub rewrite: bool,
    /// Written to the log and to `error/<node>/error`: an errno and a text.
    pub error: Option<Failure>,
    /// The device is to be read again after this time: what it needs may be there then.
    pub again: Option<Duration>,
}

/// An error as toolstacks read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A positive errno.
    pub errno: i32,
    /// What went wrong, naming key or file, found and expected.
    pub what: String,
    /// It may pass in a moment: what the device needs is in use, and its user on the way out.
    pub may_pass: bool,
    /// Another process has what the device needs, and is waited for as long as it takes: closing the device would take it
    /// from the guest that it serves.
    pub is_held: bool,
}

impl Failure {
    /// Makes a failure of an errno and a text.
    pub fn new(errno: i32, what: impl ToString) -> Failure {
        Failure { errno, what: what.to_string(), may_pass: false, is_held: false }
    }

    /// Makes the failure (EBUSY) that something is in use, by a device that is being removed or a process that is exiting.
    pub fn in_use_for_now(what: impl ToString) -> Failure {
        Failure { may_pass: true, ..Failure::new(XsError::EBUSY.errno(), what) }
    }

    /// Makes the failure (EBUSY) that another process has what the device needs.
    pub fn held_by_another_process(what: impl ToString) -> Failure {
        Failure { is_held: true, ..Failure::in_use_for_now(what) }
    }
}
