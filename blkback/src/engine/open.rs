//! Opens the disk that a [`Spec`] describes.

use super::spec::Source;
use super::{Access, Disk, DiskInfo, FileDisk, NullDisk, OpenError, RamDisk, Spec};
use std::sync::Arc;

/// Opens a disk.
///
/// # Errors
/// [`OpenError`] names the key, the file, what was found and what was expected.
pub fn open(spec: &Spec) -> Result<Arc<dyn Disk>, OpenError> {
    let described = |bytes: u64| DiskInfo {
        read_only: spec.mode.read_only(),
        cdrom: spec.cdrom,
        ..DiskInfo::new(bytes / 512)
    };
    let &Spec { mode, direct, user, own_loop, cdrom, .. } = spec;
    Ok(match &spec.source {
        Source::Raw(path) => Arc::new(
            FileDisk::open_as(path, Access { mode, direct, user, own_loop, server: None })?.with_cdrom(cdrom),
        ),
        Source::Null(bytes) => Arc::new(NullDisk::new(described(*bytes))),
        Source::Empty => Arc::new(NullDisk::new(DiskInfo { flush: false, ..described(0) })),
        Source::Ram(bytes) => Arc::new(RamDisk::new(described(*bytes)).map_err(OpenError::Ram)?),
    })
}
