//! What a guest of a real Xen host shares its devices with: the kernel that it runs in, and other processes.

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// Where Linux shows the frontends of its domain.
pub const DEVICES: &str = "/sys/bus/xen/devices";

/// The driver of the kernel's that holds a device, as `vbd-51712` is held by `vbd`. `devices` is [`DEVICES`].
pub fn driver(devices: &Path, kind: &str, id: u32) -> Option<String> {
    let link = fs::read_link(devices.join(format!("{kind}-{id}/driver"))).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Makes this process the one that has the domain's devices, until the file is closed: the store does not tell two
/// processes of one domain apart.
///
/// # Errors
/// There is another one, or the directory is not writable.
pub fn alone(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join("guest.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|e| Error::file(&path, "opening the lock", e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            Error::Other(format!("{}: another `xpv guest --xen` has this domain's devices", path.display()))
        }
        other => Error::file(&path, "locking", other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_a_driver_is_held_by_it() {
        let devices = tempfile::tempdir().unwrap();
        let device = devices.path().join("vbd-51712");
        fs::create_dir(&device).unwrap();
        assert_eq!(driver(devices.path(), "vbd", 51712), None);
        std::os::unix::fs::symlink("../../bus/xen/drivers/vbd", device.join("driver")).unwrap();
        assert_eq!(driver(devices.path(), "vbd", 51712).as_deref(), Some("vbd"));
        assert_eq!(driver(devices.path(), "vif", 51712), None);
    }

    #[test]
    fn a_domain_has_one_guest() {
        let directory = tempfile::tempdir().unwrap();
        let first = alone(directory.path()).unwrap();
        assert!(alone(directory.path()).unwrap_err().to_string().contains("another"));
        drop(first);
        assert!(alone(directory.path()).is_ok());
    }
}
