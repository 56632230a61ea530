//! An image at rest with its backing files, open and locked: the image as it is asked for, the others shared with other readers.

use std::path::{Path, PathBuf};

use blkback::engine::format::{Format, OpenChain, OpenLayer};
use blkback::engine::{Access, Mode, OpenImage};

use super::Geometry;
use crate::config::target::EXPECTED_FORMAT;
use crate::error::{Error, Result};

fn access(mode: Mode) -> Access {
    Access { mode, direct: false, user: None, own_loop: None, server: None }
}

/// Opens one image.
///
/// # Errors
/// It is absent, none, or somebody uses it.
pub fn open_image(path: &Path, mode: Mode) -> Result<OpenImage> {
    OpenImage::open(path, access(mode)).map_err(|e| Error::other(e.to_string()))
}

/// Opens an image, its backing file, that one's, and so on.
///
/// # Errors
/// As [`open_image`] of each; a chain without end.
pub fn open(path: &Path, format: Format, mode: Mode) -> Result<Vec<OpenLayer>> {
    if format == Format::Raw {
        return Ok(vec![OpenLayer { image: open_image(path, mode)?, format }]);
    }
    let chain = OpenChain::open(path, access(mode), &|_, _| Ok(()));
    chain.map(|chain| chain.layers).map_err(|e| Error::other(e.to_string()))
}

/// The path and format of an image's backing file.
///
/// # Errors
/// No format that is served is recorded.
pub fn backing(path: &Path, geometry: &Geometry) -> Result<Option<(PathBuf, Format)>> {
    let Some(backing) = &geometry.backing else { return Ok(None) };
    let recorded = backing.format.as_deref().unwrap_or_default();
    let format = recorded.parse().map_err(|()| {
        let found = format!("{}: backing format: found {recorded:?}", path.display());
        Error::other(format!("{found}, expected {EXPECTED_FORMAT}"))
    })?;
    Ok(Some((resolved(path, &backing.name), format)))
}

/// The path of a backing file that the image at `path` names: it begins in that image's directory.
pub fn resolved(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}
