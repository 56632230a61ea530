// Not a core: does I/O or calls a hypervisor.

//! What sysfs says of a block device.

use super::claims;
use std::fs::{File, Metadata};
use std::os::unix::fs::FileTypeExt;

pub(super) fn is_block_device(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.file_type().is_block_device())
}

/// A number of `queue` of a block device's directory in sysfs.
pub(super) fn queue_attribute(meta: &Metadata, name: &str) -> Option<u32> {
    // A partition has no queue directory of its own; its disk's is one level up.
    ["queue", "../queue"].iter().find_map(|queue| sysfs_attribute(meta, &format!("{queue}/{name}")))
}

/// A number of a block device's directory in sysfs.
pub(super) fn sysfs_attribute(meta: &Metadata, name: &str) -> Option<u32> {
    let (major, minor) = claims::number(meta);
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}")).ok()?;
    // One that is larger counts as the largest.
    text.trim_ascii().parse::<u64>().ok().map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}
