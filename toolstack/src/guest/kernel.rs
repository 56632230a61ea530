//! On a real Xen host: frontends of the guest's kernel, and other processes, that may use the domain's devices.

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// Where Linux lists the frontends of its domain.
pub const DEVICES: &str = "/sys/bus/xen/devices";

/// Returns the kernel driver that a device is bound to, e.g. `vbd` for `vbd-51712`. `devices` is [`DEVICES`].
pub fn bound_driver(devices: &Path, kind: &str, id: u32) -> Option<String> {
    let link = fs::read_link(devices.join(format!("{kind}-{id}/driver"))).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Locks the domain's devices for this process until the file is closed: the store does not distinguish processes of
/// one domain.
///
/// # Errors
/// [`Error::Other`] if another process holds the lock; [`Error::File`] if the directory is not writable.
pub fn lock_domain(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join("guest.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|e| Error::file(&path, "opening the lock", e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            Error::Other(format!("{}: another `xpv guest --xen` uses this domain's devices", path.display()))
        }
        other => Error::file(&path, "locking", other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_link_of_a_device_names_its_bound_driver() {
        let devices = tempfile::tempdir().unwrap();
        let device = devices.path().join("vbd-51712");
        fs::create_dir(&device).unwrap();
        assert_eq!(bound_driver(devices.path(), "vbd", 51712), None);
        std::os::unix::fs::symlink("../../bus/xen/drivers/vbd", device.join("driver")).unwrap();
        assert_eq!(bound_driver(devices.path(), "vbd", 51712).as_deref(), Some("vbd"));
        assert_eq!(bound_driver(devices.path(), "vif", 51712), None);
    }

    #[test]
    fn domain_lock_is_exclusive() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock_domain(directory.path()).unwrap();
        assert!(lock_domain(directory.path()).unwrap_err().to_string().contains("another"));
        drop(first);
        assert!(lock_domain(directory.path()).is_ok());
    }
}
