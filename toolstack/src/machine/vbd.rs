//! A disk's nodes: the keys of libxl's `device_disk_add`.

use xenstore::DomId;
use xenstore::xenbus::Device;

use super::device::NewDevice;
use crate::config::DiskSpec;
use crate::error::{Error, Origin, Result};

/// The nodes of a disk for a domain.
pub fn nodes(domid: DomId, disk: &DiskSpec) -> NewDevice {
    let mut new = NewDevice::new(Device::new("vbd", domid, disk.vdev));
    let kind = if disk.cdrom { "cdrom" } else { "disk" };
    new.back
        .set("params", disk.target.display())
        .set("removable", 0)
        .set("bootable", 1)
        .set("dev", &disk.dev)
        .set("type", "phy")
        .set("mode", if disk.writable { "w" } else { "r" })
        .set("device-type", kind)
        .set("discard-enable", u8::from(disk.discard));
    if disk.direct_io_safe {
        new.back.set("direct-io-safe", 1);
    }
    new.front
        .set("virtual-device", disk.vdev)
        .set("device-type", kind)
        .set("trusted", u8::from(disk.trusted));
    new
}

/// Sees that an image can be used as a disk says, before anything is made of it.
///
/// # Errors
/// It is missing, may not be read or written, or is neither a file nor a block device.
pub fn check_target(origin: &Origin, disk: &DiskSpec) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let path = &disk.target;
    let doing = if disk.writable { "opening it for reading and writing" } else { "opening it for reading" };
    let failed = |e| Error::Other(format!("{origin}: disk: {}", Error::file(path, doing, e)));
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        let found = path.display().to_string();
        return Err(origin.wrong("disk: target", &found, "an image file or a block device"));
    }
    std::fs::OpenOptions::new().read(true).write(disk.writable).open(path).map_err(failed)?;
    if path.to_str().is_none_or(|p| p.contains('\0')) {
        return Err(origin.wrong("disk: target", &path.display().to_string(), "a path in UTF-8"));
    }
    Ok(())
}
