//! Opens the disk that the toolstack asks for.

use super::spec::Source;
use super::{Disk, DiskInfo, FileDisk, NullDisk, RamDisk, Spec};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused.
    #[error("params: {}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("params: {}: found {found}, expected a regular file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Its length is no disk's.
    #[error("params: {}: found {bytes} bytes, expected a multiple of 512 above 0", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Bytes found.
        bytes: u64,
    },
    /// It may only be read, but is to be written.
    #[error("mode: {}: found a file that may only be read, expected mode r (or a writable file)", path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// Somebody else uses it.
    #[error("mode: {}: in use by another disk; expected mode r in both, or w! to share it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// There is not that much memory.
    #[error("params: ram: {0}")]
    Ram(io::Error),
}

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
