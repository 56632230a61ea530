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
    /// The image has not one whole sector.
    #[error("params: {}: found {bytes} bytes, expected at least one sector of {sector_size}", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Bytes found.
        bytes: u64,
        /// Bytes of a sector.
        sector_size: u32,
    },
    /// The image is not writable, but the mode is.
    #[error("mode: {}: found a file that may only be read, expected mode r (or a writable file)", path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// Another disk or program holds the image's lock.
    #[error("mode: {}: in use by {holder}; expected mode r in both, or w! in both to share it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who holds it, as far as it is known.
        holder: String,
    },
    /// This domain itself uses the image: it is mounted, or another program writes to it.
    #[error("mode: {}: in use by this domain: {user}; expected that nobody else uses it, or mode w! to share it", path.display())]
    Claimed {
        /// The image.
        path: PathBuf,
        /// What uses it.
        user: String,
    },
    /// The kernel still carries out operations for an earlier process of the same device.
    #[error("mode: {}: an earlier process of this device has operations in flight", path.display())]
    Draining {
        /// The image.
        path: PathBuf,
    },
    /// It is no image of the format that it is said to be, or one that is not served.
    #[error("params: {}: {what}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What was found, and what was expected.
        what: String,
    },
    /// The image is not where images may be.
    #[error("{what}")]
    Denied {
        /// Names the image, and where images may be.
        what: String,
    },
    /// The memory cannot be allocated.
    #[error("params: ram: {0}")]
    Ram(io::Error),
}
