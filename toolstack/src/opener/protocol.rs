//! What dom0 asks its opener, and what that answers: JSON, each in one packet.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use blkback::DiskInfo;
use blkback::engine::format::{Format, OpenLayer};
use blkback::engine::{Access, Mode, OpenError, OpenImage};
use serde::{Deserialize, Serialize};
use xenbus::driver::Failure;

use super::holders::Holder;

/// What is to be opened at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    /// A raw image.
    Raw,
    /// A qcow2 image, with those below it.
    Chain,
    /// A qcow2 image over one that this process has already.
    Overlay,
}

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// An image.
    Image(Request),
    /// The policy, of which the opener knows the path.
    Policy,
}

/// An image that is to be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) path: PathBuf,
    pub(super) what: What,
    /// As in the key `mode`: `r`, `w` or `w!`.
    mode: String,
    direct: bool,
    user: Option<u64>,
    own_loop: Option<(u64, u64)>,
}

impl Request {
    pub(super) fn new(path: &Path, what: What, access: &Access) -> Request {
        let &Access { mode, direct, user, own_loop, .. } = access;
        let mode = match mode {
            Mode::Read => "r",
            Mode::Write => "w",
            Mode::WriteShared => "w!",
        };
        Request { path: path.to_owned(), what, mode: mode.into(), direct, user, own_loop }
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
    /// The image, and those below it, are open; their descriptors are beside this.
    Opened(Images),
    /// The policy is open for reading; its descriptor is beside this.
    Policy,
    /// It is not.
    Refused(Refusal),
}

/// Images that this process has opened, or was sent.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) layers: Vec<OpenLayer>,
    /// Of an overlay: the device and inode numbers of the image that it names as below it.
    pub(super) below: Option<(u64, u64)>,
}

/// Images that are open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Images {
    images: Vec<Image>,
    /// As in [`Layers`].
    below: Option<(u64, u64)>,
}

/// An image that is open.
#[derive(Debug, Serialize, Deserialize)]
struct Image {
    path: PathBuf,
    format: String,
    properties: Properties,
    /// How many of the descriptors are its.
    descriptors: usize,
}

impl Images {
    pub(super) fn new(opened: &Layers) -> Images {
        let image = |layer: &OpenLayer| Image {
            path: layer.image.path().to_owned(),
            format: layer.format.to_string(),
            properties: layer.image.info().into(),
            descriptors: layer.image.descriptors().count(),
        };
        Images { images: opened.layers.iter().map(image).collect(), below: opened.below }
    }

    /// The images, by the descriptors that came beside this; `None` if these are not all, or there is no image.
    pub(super) fn received(self, descriptors: Vec<OwnedFd>) -> Option<Layers> {
        let mut descriptors = descriptors.into_iter();
        let mut layer = |image: Image| {
            let format: Format = image.format.parse().ok()?;
            let own = descriptors.by_ref().take(image.descriptors);
            let image = OpenImage::received(image.path, image.properties.into(), own)?;
            Some(OpenLayer { image, format })
        };
        let layers = self.images.into_iter().map(&mut layer).collect::<Option<Vec<_>>>()?;
        (!layers.is_empty()).then_some(Layers { layers, below: self.below })
    }
}

/// The properties of an open image.
#[derive(Debug, Serialize, Deserialize)]
struct Properties {
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
