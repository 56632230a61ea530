//! Lets a device's other threads wake the control loop.

use super::target::Id;

/// Makes the control loop call one device's [`BackDevice::changed`](super::BackDevice::changed) soon; cheap to clone,
/// usable from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    id: Id,
    devices: event_loop::Waker<Id>,
}

impl Waker {
    pub(super) fn new(id: Id, devices: event_loop::Waker<Id>) -> Waker {
        Waker { id, devices }
    }

    /// Wakes the control loop for this device. Several wakes before it runs are one.
    pub fn wake(&self) {
        self.devices.wake(self.id);
    }
}
