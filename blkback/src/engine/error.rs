// Not a core: does I/O or calls a hypervisor.

//! The errors of opening a disk.

use std::io;
use std::path::PathBuf;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A system call on the image failed.
    #[error("params: {}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// The image is neither a file nor a block device.
    #[error("params: {}: found {found}, expected a regular file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// The kind of file found.
        found: &'static str,
    },
    /// The image is empty, or no whole number of sectors.
    #[error("params: {}: found {bytes} bytes, expected a multiple of 512 above 0", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Bytes found.
        bytes: u64,
    },
    /// The image is not writable, but the mode is.
    #[error("mode: {}: found a file that may only be read, expected mode r (or a writable file)", path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// Another disk or program holds the image's lock.
    #[error("mode: {}: in use by {holder}; expected mode r in both, or w! to share it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who holds it, as far as it is known.
        holder: String,
    },
    /// The memory cannot be allocated.
    #[error("params: ram: {0}")]
    Ram(io::Error),
}
