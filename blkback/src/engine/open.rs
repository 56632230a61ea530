//! Opens the disk that a [`Spec`] describes.

use super::spec::Source;
use super::{Disk, DiskInfo, FileDisk, NullDisk, OpenError, RamDisk, Spec};
use std::sync::Arc;

/// Opens a disk.
///
/// # Errors
/// [`OpenError`] names the key, the file, what was found and what was expected.
pub fn open(spec: &Spec) -> Result<Arc<dyn Disk>, OpenError> {
    let described = |bytes: u64| DiskInfo { read_only: spec.mode.read_only(), ..DiskInfo::new(bytes / 512) };
    Ok(match &spec.source {
        Source::Raw(path) => Arc::new(FileDisk::open(path, spec.mode, spec.direct)?),
        Source::Null(bytes) => Arc::new(NullDisk::new(described(*bytes))),
        Source::Ram(bytes) => Arc::new(RamDisk::new(described(*bytes)).map_err(OpenError::Ram)?),
    })
}
