//! Devices that use one disk one after the other: a machine that migrates within its host has two for a while.
//!
//! The new domain's device appears before the old domain's is removed, and must neither read nor write before the old
//! one's last request is complete: a late write of the old one would overwrite one of the new. So the youngest device
//! of a disk uses it, once the older ones have released it; when the youngest is removed, as after a migration that
//! failed, the next one acquires the disk again.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use xenbus::driver::Waker;

use crate::engine::Disk;

/// One device of a disk.
struct Entry {
    number: u64,
    uses_disk: bool,
    waker: Waker,
}

/// The devices of one disk, the oldest first.
type DiskQueue = Mutex<Vec<Entry>>;

/// The queues of all disks in use.
#[derive(Default)]
pub(crate) struct DiskQueues {
    queues: Vec<(Weak<dyn Disk>, Weak<DiskQueue>)>,
    last: u64,
}

/// A device's entry in the queue of its disk. Its ring's thread shares it until the last request is complete.
pub(crate) struct Claim {
    queue: Arc<DiskQueue>,
    number: u64,
}

impl DiskQueues {
    /// Appends a device to the queue of this disk, the same `Arc`, and wakes the older devices.
    pub(crate) fn join(&mut self, disk: &Arc<dyn Disk>, waker: Waker) -> Arc<Claim> {
        self.queues.retain(|(disk, queue)| disk.strong_count() > 0 && queue.strong_count() > 0);
        let disk = Arc::downgrade(disk);
        let known =
            self.queues.iter().find(|(other, _)| other.ptr_eq(&disk)).and_then(|(_, queue)| queue.upgrade());
        let queue = known.unwrap_or_else(|| {
            let queue = Arc::<DiskQueue>::default();
            self.queues.push((disk, Arc::downgrade(&queue)));
            queue
        });
        self.last += 1;
        let claim = Claim { queue, number: self.last };
        claim.with(|devices| {
            devices.iter().for_each(|device| device.waker.wake());
            devices.push(Entry { number: claim.number, uses_disk: false, waker });
        });
        Arc::new(claim)
    }
}

impl Claim {
    /// Whether this is the youngest device of its disk, which is to use it.
    pub(crate) fn is_youngest(&self) -> bool {
        self.with(|devices| devices.last().is_some_and(|device| device.number == self.number))
    }

    /// Whether this is the only device of its disk.
    pub(crate) fn is_alone(&self) -> bool {
        self.with(|devices| devices.len() == 1)
    }

    /// Acquires the disk; `false` if this is not the youngest device, or another still uses the disk. The device is
    /// woken when that changes.
    pub(crate) fn try_acquire(&self) -> bool {
        self.with(|devices| match devices.split_last_mut() {
            Some((last, others))
                if last.number == self.number && others.iter().all(|other| !other.uses_disk) =>
            {
                last.uses_disk = true;
                true
            }
            _ => false,
        })
    }

    /// Releases the disk.
    pub(crate) fn release(&self) {
        self.with(|devices| {
            if let Some(device) = devices.iter_mut().find(|device| device.number == self.number) {
                device.uses_disk = false;
            }
            wake_youngest(devices, self.number);
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<Entry>) -> T) -> T {
        change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.with(|devices| {
            devices.retain(|device| device.number != self.number);
            wake_youngest(devices, self.number);
        });
    }
}

fn wake_youngest(devices: &[Entry], except: u64) {
    if let Some(device) = devices.last().filter(|device| device.number != except) {
        device.waker.wake();
    }
}
