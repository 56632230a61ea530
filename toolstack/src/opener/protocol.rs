//! What dom0 asks its opener, and what that answers: JSON, each in one packet.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use blkback::DiskInfo;
use blkback::engine::format::{Format, OpenLayer};
use blkback::engine::{Access, Mode, OpenError, OpenImage};
use serde::{Deserialize, Serialize};
use xenbus::driver::Failure;

use super::holders::Holder;

/// An image that is to be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) path: PathBuf,
    /// As in the key `mode`: `r`, `w` or `w!`.
    mode: String,
    direct: bool,
    user: Option<u64>,
    own_loop: Option<(u64, u64)>,
    /// `raw` or `qcow2`.
    format: String,
}

impl Request {
    pub(super) fn new(path: &Path, format: Format, access: &Access) -> Request {
        let &Access { mode, direct, user, own_loop, .. } = access;
        let mode = match mode {
            Mode::Read => "r",
            Mode::Write => "w",
            Mode::WriteShared => "w!",
        };
        Request {
            path: path.to_owned(),
            mode: mode.into(),
            direct,
            user,
            own_loop,
            format: format.to_string(),
        }
    }

    /// The image's format; `None` if it is none.
    pub(super) fn format(&self) -> Option<Format> {
        self.format.parse().ok()
    }

    /// How the image is to be opened, for the process `server`; `None` if the mode is none.
    pub(super) fn access(&self, server: u32) -> Option<Access> {
        let &Request { direct, user, own_loop, .. } = self;
        Some(Access { mode: self.mode.parse().ok()?, direct, user, own_loop, server: Some(server) })
    }
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The image is open, and those below it; their descriptors are beside this, in the same order.
    Opened(Vec<Layer>),
    /// It is not.
    Refused(Refusal),
}

/// An open image.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Layer {
    path: PathBuf,
    format: String,
    properties: Properties,
    descriptors: usize,
}

impl Layer {
    pub(super) fn new(layer: &OpenLayer) -> Layer {
        let OpenLayer { image, format } = layer;
        let (path, properties) = (image.path().to_owned(), image.info().into());
        Layer { path, format: format.to_string(), properties, descriptors: image.descriptors().count() }
    }

    /// The image, with as many of the descriptors as it has; `None` if they are not there.
    pub(super) fn received(self, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<OpenLayer> {
        let fds: Vec<OwnedFd> = fds.take(self.descriptors).collect();
        let image = OpenImage::received(self.path, self.properties.into(), fds)?;
        Some(OpenLayer { image, format: self.format.parse().ok()? })
    }
}

/// The properties of an open image.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Properties {
    sectors: u64,
    sector_size: u32,
    physical_sector_size: u32,
    read_only: bool,
}

impl From<DiskInfo> for Properties {
    fn from(info: DiskInfo) -> Properties {
        let DiskInfo { sectors, sector_size, physical_sector_size, read_only, .. } = info;
        Properties { sectors, sector_size, physical_sector_size, read_only }
    }
}

impl From<Properties> for DiskInfo {
    fn from(properties: Properties) -> DiskInfo {
        let Properties { sectors, sector_size, physical_sector_size, read_only } = properties;
        DiskInfo { sector_size, physical_sector_size, read_only, ..DiskInfo::new(sectors) }
    }
}

/// Why an image was not opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Another disk or program has the image's locks.
    InUse {
        /// The image.
        path: PathBuf,
        /// Who has them, if nothing more is known.
        holder: String,
        /// The device and inode numbers of the image.
        file: Option<(u64, u64)>,
        /// The processes that have them, as far as the kernel tells.
        holders: Vec<Holder>,
    },
    /// This domain itself uses the image.
    Claimed {
        /// Says what uses it.
        what: String,
        /// The number of the error.
        errno: i32,
    },
    /// Anything else.
    Failed {
        /// Names the key, the image, what was found and what was expected.
        what: String,
        /// The number of the error.
        errno: i32,
        /// Whether it may pass without a change by the toolstack.
        may_pass: bool,
    },
}

impl Refusal {
    /// A refusal with the text and number of a failure.
    pub(crate) fn failed(failure: Failure) -> Refusal {
        let Failure { errno, what, may_pass, .. } = failure;
        Refusal::Failed { what, errno, may_pass }
    }

    /// The refusal of an image for an error; `holders` are asked for where another one has the image.
    pub(super) fn new(
        error: OpenError,
        holders: impl FnOnce(&Path) -> (Option<(u64, u64)>, Vec<Holder>),
    ) -> Refusal {
        match error {
            OpenError::InUse { path, holder } => {
                let (file, holders) = holders(&path);
                Refusal::InUse { path, holder, file, holders }
            }
            error => {
                let is_claimed = matches!(error, OpenError::Claimed { .. });
                let failure = Failure::from(error);
                match is_claimed {
                    true => Refusal::Claimed { what: failure.what, errno: failure.errno },
                    false => Refusal::failed(failure),
                }
            }
        }
    }
}
