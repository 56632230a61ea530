//! An image at rest with its backing files, open and locked: the image as it is asked for, the others shared with other readers.

use std::path::{Path, PathBuf};

use blkback::engine::format::{Format, OpenChain, OpenLayer};
use blkback::engine::{Access, Mode, OpenError, OpenImage};
use ring_abi::blkif::key::PARAMS;

use super::Geometry;
use crate::error::{Error, Result};

fn access(mode: Mode) -> Access {
    Access { mode, direct: false, user: None, own_loop: None, server: None }
}

/// Opens one image.
///
/// # Errors
/// It is absent, none, or somebody uses it.
pub fn open_image(path: &Path, format: Format, mode: Mode) -> Result<OpenImage> {
    let opened = match format {
        Format::Raw => OpenImage::open(path, access(mode)),
        Format::Qcow2 => OpenChain::open_alone(path, access(mode), &|_, _| Ok(()))
            .map(|mut chain| chain.layers.swap_remove(0).image),
    };
    opened.map_err(refused)
}

/// The error of an image that a command names: by its path alone, as no key has it.
fn refused(error: OpenError) -> Error {
    let text = error.to_string();
    let key = format!("{PARAMS}: ");
    Error::other(text.strip_prefix(&key).unwrap_or(&text))
}

/// Opens an image, its backing file, that one's, and so on.
///
/// # Errors
/// As [`open_image`] of each; a chain without end.
pub fn open(path: &Path, format: Format, mode: Mode) -> Result<Vec<OpenLayer>> {
    if format == Format::Raw {
        return Ok(vec![OpenLayer { image: open_image(path, format, mode)?, format }]);
    }
    let chain = OpenChain::open(path, access(mode), &|_, _| Ok(()));
    chain.map(|chain| chain.layers).map_err(refused)
}

/// The path and format of an image's backing file.
///
/// # Errors
/// No format that is served is recorded, or no path.
pub fn backing(path: &Path, geometry: &Geometry) -> Result<Option<(PathBuf, Format)>> {
    let located = geometry.backing.as_ref().map(|backing| backing.locate(path)).transpose();
    located.map_err(|e| Error::other(format!("{}: {e}", path.display())))
}

/// The path of a backing file that the image at `path` names: it begins in that image's directory.
pub fn resolved(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}
