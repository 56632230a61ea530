//! Leaves devices that are bound to the kernel's own backends to them.
//!
//! Linux binds a loaded backend (xen-blkback, xen-netback) to every device of its kind as its node appears, at the same
//! time as this process is notified of the node. Where such a driver is loaded, a new device is polled for a second: if
//! it is still unbound, as after `echo vbd-1-51712 >.../unbind`, it is served here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use xenbus::Device;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Update, Waker};

/// How long the kernel may take to bind a new device.
const BIND_TIMEOUT: Duration = Duration::from_secs(1);

/// A driver that serves no device that is bound to a driver of the kernel.
pub struct SkipKernelOwned<D> {
    driver: D,
    bus: PathBuf,
    /// Devices that were found unbound, and when.
    unbound: Vec<(Device, Instant)>,
}

impl<D: BackDriver> SkipKernelOwned<D> {
    /// Wraps `driver`, on a host that lists its devices in `/sys/bus/xen-backend`.
    pub fn new(driver: D) -> SkipKernelOwned<D> {
        SkipKernelOwned { driver, bus: "/sys/bus/xen-backend".into(), unbound: Vec::new() }
    }

    /// Whether the device is bound to a driver of the kernel; `None` while that may still happen.
    fn is_kernel_owned(&mut self, device: &Device, now: Instant) -> Option<bool> {
        let Device { kind, front, id, .. } = device;
        if !self.bus.join("drivers").join(kind).exists() {
            return Some(false);
        }
        if self.bus.join(format!("devices/{kind}-{front}-{id}/driver")).exists() {
            self.unbound.retain(|(unbound, _)| unbound != device);
            return Some(true);
        }
        let since = match self.unbound.iter().find(|(unbound, _)| unbound == device) {
            Some((_, since)) => *since,
            None => {
                self.unbound.push((device.clone(), now));
                now
            }
        };
        if now.saturating_duration_since(since) < BIND_TIMEOUT {
            return None;
        }
        self.unbound.retain(|(unbound, _)| unbound != device);
        Some(false)
    }
}

impl<D: BackDriver> BackDriver for SkipKernelOwned<D> {
    fn kind(&self) -> &str {
        self.driver.kind()
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        self.driver.frontend_keys()
    }

    fn probe(
        &mut self,
        device: &Device,
        state: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        match self.is_kernel_owned(device, Instant::now()) {
            Some(false) => self.driver.probe(device, state, waker),
            Some(true) => {
                tracing::warn!(
                    device = device.back_path(),
                    "left to the kernel, whose {} has it: unload that module to have it served here",
                    module(&device.kind)
                );
                Ok(Box::new(KernelOwned))
            }
            None => Err(Failure::in_use_for_now("the kernel may still bind it")),
        }
    }
}

/// The kernel module of a kind's backend.
fn module(kind: &str) -> &'static str {
    match kind {
        "vbd" => "xen-blkback",
        "vif" => "xen-netback",
        _ => "backend",
    }
}

/// A device that the kernel serves: it is never written to.
struct KernelOwned;

impl BackDevice for KernelOwned {
    fn changed(&mut self, _: &DeviceState) -> Update {
        Update::default()
    }

    fn is_foreign(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;

    struct Unused;

    impl BackDriver for Unused {
        fn kind(&self) -> &str {
            "vbd"
        }
        fn frontend_keys(&self) -> &'static [&'static str] {
            &[]
        }
        fn probe(&mut self, _: &Device, _: &DeviceState, _: Waker) -> Result<Box<dyn BackDevice>, Failure> {
            Err(Failure::new(0, "never called"))
        }
    }

    #[test]
    fn device_is_served_here_if_unbound_after_the_timeout() {
        let bus = tempfile::tempdir().unwrap();
        let mut driver = SkipKernelOwned { driver: Unused, bus: bus.path().into(), unbound: Vec::new() };
        let device = Device::new("vbd", DomId(3), 51712);
        let start = Instant::now();
        assert_eq!(driver.is_kernel_owned(&device, start), Some(false), "no driver is loaded");
        std::fs::create_dir_all(bus.path().join("drivers/vbd")).unwrap();
        assert_eq!(driver.is_kernel_owned(&device, start), None);
        assert_eq!(driver.is_kernel_owned(&device, start + BIND_TIMEOUT), Some(false), "unbound");
        assert_eq!(driver.is_kernel_owned(&device, start + BIND_TIMEOUT), None, "the timeout starts anew");
        std::fs::create_dir_all(bus.path().join("devices/vbd-3-51712/driver")).unwrap();
        assert_eq!(driver.is_kernel_owned(&device, start), Some(true));
        assert!(driver.unbound.is_empty());
    }
}
