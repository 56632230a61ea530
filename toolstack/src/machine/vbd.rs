//! A disk's nodes: the keys of libxl's `device_disk_add`.

use std::path::Path;

use blkback::engine::format::Format;
use nix::unistd::{AccessFlags, eaccess};
use ring_abi::blkif::key;
use ring_abi::xenbus::key::{TRUSTED, TYPE};
use xenbus::Device;
use xenstore::DomId;

use super::device::NewDevice;
use crate::config::DiskSpec;
use crate::error::{Error, Origin, Result, chain};

/// Returns the nodes of a disk of a domain.
pub fn nodes(domid: DomId, disk: &DiskSpec) -> NewDevice {
    let mut new = NewDevice::new(Device::new("vbd", domid, disk.vdev));
    let kind = if disk.cdrom { "cdrom" } else { "disk" };
    new.back
        .set(key::PARAMS, params(disk))
        .set(key::REMOVABLE, u8::from(disk.cdrom))
        .set(key::BOOTABLE, 1)
        .set(key::DEV, &disk.dev)
        .set(TYPE, "phy")
        .set(key::MODE, mode(disk))
        .set(key::DEVICE_TYPE, kind)
        .set(key::DISCARD_ENABLE, u8::from(disk.discard));
    if disk.detect_zeroes {
        new.back.set(key::DETECT_ZEROES, "unmap");
    }
    if disk.direct_io_safe {
        new.back.set(key::DIRECT_IO_SAFE, 1);
    }
    new.back.extend(disk.limits.iter());
    new.front
        .set(key::VIRTUAL_DEVICE, disk.vdev)
        .set(key::DEVICE_TYPE, kind)
        .set(TRUSTED, u8::from(disk.trusted));
    new
}

/// The key `params`: the path, of a qcow2 image with the prefix that says so. Without one it is raw, whatever its bytes are.
fn params(disk: &DiskSpec) -> String {
    let path = disk.target.as_deref().unwrap_or(Path::new("")).display();
    match disk.format {
        Format::Raw => path.to_string(),
        Format::Qcow2 => format!("qcow2:{path}"),
    }
}

/// The key `mode`: libxl writes `r` and `w`, and Xen's `block` script knows `w!` too.
fn mode(disk: &DiskSpec) -> &'static str {
    match (disk.writable && !disk.cdrom, disk.shared) {
        (false, _) => "r",
        (true, false) => "w",
        (true, true) => "w!",
    }
}

/// Checks that the image of a disk can be opened as configured, before any node is written.
///
/// # Errors
/// [`Error::Other`] if it is missing or may not be read or written; [`Error::Input`] if it is neither a file nor a
/// block device, or its path is not UTF-8.
pub fn check_target(origin: &Origin, disk: &DiskSpec) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Some(path) = &disk.target else { return Ok(()) };
    let doing = if disk.writable { "opening it for reading and writing" } else { "opening it for reading" };
    let script = disk.script.as_deref().map(|script| format!(" (script={script} is not run here)"));
    let script = script.unwrap_or_default();
    let failed = |e| Error::Other(format!("{origin}: disk: {}{script}", chain(&Error::file(path, doing, e))));
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        let found = path.display().to_string();
        return Err(origin.invalid("disk: target", &found, "an image file or a block device"));
    }
    // Not opened for writing: whoever looks just then would take this process for one that writes to the image.
    std::fs::File::open(path).map_err(failed)?;
    if disk.writable {
        eaccess(path, AccessFlags::W_OK).map_err(|e| failed(e.into()))?;
    }
    if path.to_str().is_none_or(|p| p.contains('\0')) {
        return Err(origin.invalid("disk: target", &path.display().to_string(), "a path in UTF-8"));
    }
    Ok(())
}
