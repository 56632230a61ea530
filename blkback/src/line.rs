//! Devices that use one disk after each other: a machine that migrates to the host it is on has two for a while.
//!
//! The new domain's device is there before the old domain's is gone, and may not read or write before the last
//! request of the old one is over: an old write that came late would undo a new one. So the youngest device of a
//! disk uses it, once the older ones have let go; and when it goes, as after a migration that failed, the next one
//! has it back.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use xenstore::driver::Waker;

use crate::engine::Disk;

/// One device's place.
struct Waiting {
    number: u64,
    uses: bool,
    waker: Waker,
}

/// The devices of one disk, the oldest first.
type Line = Mutex<Vec<Waiting>>;

/// The lines of all disks that are in use.
#[derive(Default)]
pub(crate) struct Lines {
    lines: Vec<(Weak<dyn Disk>, Weak<Line>)>,
    last: u64,
}

/// A device's place in the line of its disk. Its ring's thread has it too, until the last request is over.
pub(crate) struct Place {
    line: Arc<Line>,
    number: u64,
}

impl Lines {
    /// Joins the line of this very disk, as the youngest; the others are woken.
    pub(crate) fn join(&mut self, disk: &Arc<dyn Disk>, waker: Waker) -> Arc<Place> {
        self.lines.retain(|(disk, line)| disk.strong_count() > 0 && line.strong_count() > 0);
        let of = Arc::downgrade(disk);
        let known =
            self.lines.iter().find(|(other, _)| other.ptr_eq(&of)).and_then(|(_, line)| line.upgrade());
        let line = known.unwrap_or_else(|| {
            let line = Arc::<Line>::default();
            self.lines.push((of, Arc::downgrade(&line)));
            line
        });
        self.last += 1;
        let place = Place { line, number: self.last };
        place.with(|devices| {
            devices.iter().for_each(|device| device.waker.wake());
            devices.push(Waiting { number: place.number, uses: false, waker });
        });
        Arc::new(place)
    }
}

impl Place {
    /// Whether this device is the one to use the disk.
    pub(crate) fn has_turn(&self) -> bool {
        self.with(|devices| devices.last().is_some_and(|device| device.number == self.number))
    }

    /// Starts to use the disk; `false` where another device is to, or still does. It is woken when that changes.
    pub(crate) fn take(&self) -> bool {
        self.with(|devices| match devices.split_last_mut() {
            Some((last, others)) if last.number == self.number && others.iter().all(|other| !other.uses) => {
                last.uses = true;
                true
            }
            _ => false,
        })
    }

    /// Uses the disk no more.
    pub(crate) fn leave(&self) {
        self.with(|devices| {
            if let Some(device) = devices.iter_mut().find(|device| device.number == self.number) {
                device.uses = false;
            }
            wake_youngest(devices, self.number);
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<Waiting>) -> T) -> T {
        change(&mut self.line.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.with(|devices| {
            devices.retain(|device| device.number != self.number);
            wake_youngest(devices, self.number);
        });
    }
}

fn wake_youngest(devices: &[Waiting], but: u64) {
    if let Some(device) = devices.last().filter(|device| device.number != but) {
        device.waker.wake();
    }
}
