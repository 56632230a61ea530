//! The directories below which images are opened, if the administrator has named any: what else a process may ask for that has been taken
//! over is then refused.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directories, without symbolic links in their paths. None: images are opened anywhere.
#[derive(Clone, Debug, Default)]
pub(super) struct ImageDirs(Vec<PathBuf>);

impl ImageDirs {
    /// Resolves the directories' paths.
    ///
    /// # Errors
    /// [`Error::File`] if one does not exist.
    pub(super) fn resolve(dirs: &[PathBuf]) -> Result<ImageDirs> {
        let resolve = |dir: &PathBuf| {
            fs::canonicalize(dir).map_err(|e| Error::file(dir, "finding the directory of --images", e))
        };
        dirs.iter().map(resolve).collect::<Result<_>>().map(ImageDirs)
    }

    /// Checks that an image that was opened by a path may be. What counts is where the open file is; of a device, whose node is
    /// elsewhere, where the link is that names it.
    ///
    /// # Errors
    /// What was found, and what was expected.
    pub(super) fn check(&self, path: &Path, file: BorrowedFd<'_>) -> Result<(), String> {
        if self.0.is_empty() || self.allows(path, file).unwrap_or(false) {
            return Ok(());
        }
        let dirs: Vec<String> = self.0.iter().map(|dir| dir.display().to_string()).collect();
        Err(format!(
            "params: {}: found an image elsewhere, expected one below a directory of --images: {}",
            path.display(),
            dirs.join(", ")
        ))
    }

    fn allows(&self, path: &Path, file: BorrowedFd<'_>) -> io::Result<bool> {
        let is_below = |path: &Path| self.0.iter().any(|dir| path.starts_with(dir));
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        if is_below(&fs::read_link(&open)?) {
            return Ok(true);
        }
        let is_device = fs::metadata(&open)?.file_type().is_block_device();
        let Some(named_in) = path.parent().filter(|_| is_device) else { return Ok(false) };
        Ok(is_below(&fs::canonicalize(named_in)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn image_is_allowed_where_it_is_and_not_where_a_link_to_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("images")).unwrap();
        for name in ["images/a.img", "other.img", "images-not.img"] {
            fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(at("other.img"), at("images/link")).unwrap();
        std::os::unix::fs::symlink(at("images"), at("way")).unwrap();
        let check =
            |dirs: &ImageDirs, name: &str| dirs.check(&at(name), fs::File::open(at(name)).unwrap().as_fd());
        let dirs = ImageDirs::resolve(&[at("way")]).unwrap();
        for name in ["images/a.img", "way/a.img", "images/../way/a.img"] {
            check(&dirs, name).unwrap();
        }
        for name in ["other.img", "images/link", "images-not.img", "images/../other.img"] {
            let error = check(&dirs, name).unwrap_err();
            assert!(error.contains("expected one below a directory of --images: /"), "{error}");
        }
        check(&ImageDirs::default(), "other.img").unwrap();
        assert!(ImageDirs::resolve(&[at("absent")]).unwrap_err().to_string().contains("absent"));
    }
}
