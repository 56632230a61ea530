//! Devices that the kernel's own backends have taken, which are left to them.
//!
//! Linux binds a loaded backend (xen-blkback, xen-netback) to every device of its kind as its node appears: both of
//! us hear of it at the same moment. Where the kernel has such a driver, a new device is looked at for a while until
//! it is bound; one that stays unbound, as after `echo vbd-1-51712 >.../unbind`, is ours.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use xenstore::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};
use xenstore::xenbus::Device;

/// How long the kernel may take to bind a device: it does so in the moment it sees it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A driver that leaves alone what the kernel's has.
pub struct Unclaimed<D> {
    driver: D,
    bus: PathBuf,
    /// The device that was last found unbound, and since when.
    waiting: Vec<(Device, Instant)>,
}

impl<D: BackDriver> Unclaimed<D> {
    /// Beside this kernel's drivers.
    pub fn new(driver: D) -> Unclaimed<D> {
        Unclaimed { driver, bus: "/sys/bus/xen-backend".into(), waiting: Vec::new() }
    }

    /// Whether the kernel has the device; `None` while that is not yet sure.
    fn is_claimed(&mut self, device: &Device, now: Instant) -> Option<bool> {
        let Device { kind, front, id, .. } = device;
        if !self.bus.join("drivers").join(kind).exists() {
            return Some(false);
        }
        if self.bus.join(format!("devices/{kind}-{front}-{id}/driver")).exists() {
            self.waiting.retain(|(waiting, _)| waiting != device);
            return Some(true);
        }
        let since = match self.waiting.iter().find(|(waiting, _)| waiting == device) {
            Some((_, since)) => *since,
            None => {
                self.waiting.push((device.clone(), now));
                now
            }
        };
        if now.saturating_duration_since(since) < PATIENCE {
            return None;
        }
        self.waiting.retain(|(waiting, _)| waiting != device);
        Some(false)
    }
}

impl<D: BackDriver> BackDriver for Unclaimed<D> {
    fn kind(&self) -> &str {
        self.driver.kind()
    }

    fn probe(
        &mut self,
        device: &Device,
        view: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        match self.is_claimed(device, Instant::now()) {
            Some(false) => self.driver.probe(device, view, waker),
            Some(true) => {
                tracing::warn!(
                    device = device.back_path(),
                    "left to the kernel, whose {} has it: unload that module to have it served here",
                    module(&device.kind)
                );
                Ok(Box::new(Left))
            }
            None => Err(Failure::new(Errno::EBUSY as i32, "the kernel may still take it")),
        }
    }
}

/// The kernel's backend for a kind, as modprobe(8) knows it.
fn module(kind: &str) -> &'static str {
    match kind {
        "vbd" => "xen-blkback",
        "vif" => "xen-netback",
        _ => "backend",
    }
}

/// A device that somebody else serves: nothing of it is ours to write.
struct Left;

impl BackDevice for Left {
    fn changed(&mut self, _: &DeviceState) -> Update {
        Update::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;

    struct Nothing;

    impl BackDriver for Nothing {
        fn kind(&self) -> &str {
            "vbd"
        }
        fn probe(&mut self, _: &Device, _: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
            Err(Failure::new(0, "never asked"))
        }
    }

    #[test]
    fn a_device_is_ours_once_the_kernel_had_its_time() {
        let bus = tempfile::tempdir().unwrap();
        let mut driver = Unclaimed { driver: Nothing, bus: bus.path().into(), waiting: Vec::new() };
        let device = Device::new("vbd", DomId(3), 51712);
        let start = Instant::now();
        assert_eq!(driver.is_claimed(&device, start), Some(false), "no driver is loaded");
        std::fs::create_dir_all(bus.path().join("drivers/vbd")).unwrap();
        assert_eq!(driver.is_claimed(&device, start), None);
        assert_eq!(driver.is_claimed(&device, start + PATIENCE), Some(false), "unbound");
        assert_eq!(driver.is_claimed(&device, start + PATIENCE), None, "as new again");
        std::fs::create_dir_all(bus.path().join("devices/vbd-3-51712/driver")).unwrap();
        assert_eq!(driver.is_claimed(&device, start), Some(true));
        assert!(driver.waiting.is_empty());
    }
}
