//! A disk's target as it is served: the image's format, and where it is. The format is what the line says, never what the image's
//! bytes look like: a guest that may write to a raw image could otherwise make it name any file as its backing file.

use std::path::{Path, PathBuf};

use blkback::engine::format::Format;

use crate::error::{Origin, Result};

/// What names no format: the drivers that xm and earlier versions of xl had.
const DRIVERS: [&str; 7] = ["file", "phy", "tap", "tap2", "aio", "tapdisk", "ioemu"];

/// What is expected of a format.
pub const EXPECTED_FORMAT: &str = "raw or qcow2 (other formats are not served)";

const EXPECTED_PREFIX: &str =
    "a path, with raw: or qcow2: in front, or one of xm's file:, phy:, tap:aio: and tap:qcow2:";

/// An image or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) format: Format,
    /// Absolute.
    pub(super) path: PathBuf,
}

impl Target {
    /// Reads the target of a disk whose `format` is said by its line, raw where that is silent: `PATH`, or with prefixes,
    /// `qcow2:PATH`, `tap:aio:PATH`.
    ///
    /// # Errors
    /// A prefix or format that is not served, or two formats.
    pub(super) fn parse(origin: &Origin, format: &str, target: &str) -> Result<Target> {
        let said = match format.parse() {
            Ok(Format::Raw) => None,
            Ok(format) => Some(format),
            Err(()) => return Err(origin.invalid("disk: format", format, EXPECTED_FORMAT)),
        };
        let (format, path) = split(origin, "disk: target", said, target)?;
        // xl-disk-configuration(5): "/dev will be prepended if the path doesn't start with a '/'".
        Ok(Target { format: format.unwrap_or(Format::Raw), path: Path::new("/dev").join(path) })
    }
}

/// Splits an image's name, the value of `key`, into the format that its prefixes or `said` say and its path.
///
/// # Errors
/// A prefix that is not served, or two formats.
pub fn split<'t>(
    origin: &Origin,
    key: &str,
    mut said: Option<Format>,
    text: &'t str,
) -> Result<(Option<Format>, &'t str)> {
    let mut path = text;
    while let Some((word, after)) = path.split_once(':').filter(|(word, _)| is_prefix(word)) {
        if let Ok(named) = word.parse() {
            if let Some(other) = said.filter(|said| *said != named) {
                let expected = format!("one format (it is {other} already)");
                return Err(origin.invalid(key, text, expected));
            }
            said = Some(named);
        } else if !DRIVERS.contains(&word) {
            return Err(origin.invalid(key, text, EXPECTED_PREFIX));
        }
        path = after;
    }
    match path {
        "" => Err(origin.invalid(key, text, "a path after the prefix")),
        path => Ok((said, path)),
    }
}

/// Whether what stands before a colon may be a prefix, as xl's are, rather than a part of a path.
pub(super) fn is_prefix(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// The path in the key `params`, whatever its prefixes are.
pub fn path_of(params: &str) -> &str {
    let mut path = params;
    while let Some((_, after)) = path.split_once(':').filter(|(word, _)| is_prefix(word)) {
        path = after;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(format: &str, target: &str) -> Result<(String, String), String> {
        let parsed = Target::parse(&Origin::argument("DISK"), format, target).map_err(|e| e.to_string())?;
        Ok((parsed.format.to_string(), parsed.path.display().to_string()))
    }

    #[test]
    fn prefix_decides_the_format_and_without_one_the_line_does() {
        for (format, target, expected, path) in [
            ("raw", "/a", "raw", "/a"),
            ("qcow2", "/a", "qcow2", "/a"),
            ("raw", "qcow2:/a", "qcow2", "/a"),
            ("qcow2", "qcow2:/a", "qcow2", "/a"),
            ("raw", "raw:/a", "raw", "/a"),
            ("raw", "raw:/qcow2:/a", "raw", "/qcow2:/a"),
            ("raw", "file:/a", "raw", "/a"),
            ("raw", "phy:vg/a", "raw", "/dev/vg/a"),
            ("raw", "tap:aio:/a", "raw", "/a"),
            ("raw", "tap:qcow2:/a", "qcow2", "/a"),
            ("raw", "tap2:qcow2:/a", "qcow2", "/a"),
            ("raw", "qcow2:vg/a", "qcow2", "/dev/vg/a"),
            ("raw", "disk/by-path/pci-0000:00:1f.2", "raw", "/dev/disk/by-path/pci-0000:00:1f.2"),
        ] {
            assert_eq!(
                parse(format, target).unwrap(),
                (expected.to_owned(), path.to_owned()),
                "{format} {target}"
            );
        }
    }

    #[test]
    fn what_is_not_served_is_refused_with_key_found_and_expected() {
        for (format, target, expected) in [
            ("vhd", "/a", r#"DISK: disk: format: found "vhd", expected raw or qcow2"#),
            ("qed", "/a", r#"DISK: disk: format: found "qed", expected raw or qcow2"#),
            ("raw", "vhd:/a", r#"DISK: disk: target: found "vhd:/a", expected a path, with raw: or qcow2:"#),
            ("raw", "tap:vhd:/a", r#"DISK: disk: target: found "tap:vhd:/a", expected a path, with raw:"#),
            ("raw", "nbd:host:10809", r#"disk: target: found "nbd:host:10809", expected a path"#),
            ("qcow2", "raw:/a", r#"found "raw:/a", expected one format (it is qcow2 already)"#),
            ("raw", "qcow2:raw:/a", r#"found "qcow2:raw:/a", expected one format (it is qcow2 already)"#),
            ("raw", "qcow2:", r#"found "qcow2:", expected a path after the prefix"#),
        ] {
            let error = parse(format, target).unwrap_err();
            assert!(error.contains(expected), "{format} {target}: {error}");
        }
    }

    #[test]
    fn path_of_params_is_what_follows_its_prefixes() {
        for (params, path) in [("/a:b", "/a:b"), ("qcow2:/a", "/a"), ("tap:aio:/a", "/a"), ("", "")] {
            assert_eq!(path_of(params), path);
        }
    }
}
