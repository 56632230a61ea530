//! An image as a command names it. What the administrator writes decides its format: `--format`, a prefix as in a disk's line, or the ending
//! `.qcow2`; never what the image's bytes look like, as a guest writes those of a raw one.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::config::target::{EXPECTED_FORMAT, split};
use crate::error::{Origin, Result};
use blkback::engine::format::Format;

/// A format as an option's value.
#[derive(Clone, Copy, Debug)]
pub struct FormatOption(pub Format);

impl FromStr for FormatOption {
    type Err = String;

    fn from_str(text: &str) -> Result<FormatOption, String> {
        text.parse().map(FormatOption).map_err(|()| format!("expected {EXPECTED_FORMAT}"))
    }
}

/// An image that a command names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Relative to where the command runs, if it is not absolute.
    pub path: PathBuf,
    /// `None` where nothing says it.
    pub said: Option<Format>,
}

impl NamedImage {
    /// Reads the argument `name` of a command: a path, which may have the prefix of a format.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`]: a prefix that is not served, or that contradicts `format`.
    pub fn parse(name: &str, text: &str, format: Option<FormatOption>) -> Result<NamedImage> {
        let format = format.map(|FormatOption(format)| format);
        let (said, path) = split(&Origin::argument(name), "image", format, text)?;
        let path = Path::new(path);
        let of_ending = path.extension().filter(|ending| *ending == "qcow2").map(|_| Format::Qcow2);
        Ok(NamedImage { path: path.into(), said: said.or(of_ending) })
    }

    /// The format: raw where nothing says it.
    pub fn format(&self) -> Format {
        self.said.unwrap_or(Format::Raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, format: Option<Format>) -> Result<NamedImage, String> {
        NamedImage::parse("PATH", text, format.map(FormatOption)).map_err(|e| e.to_string())
    }

    #[test]
    fn option_prefix_and_ending_say_the_format_in_this_order() {
        for (text, format, said, path) in [
            ("a.img", None, None, "a.img"),
            ("a.qcow2", None, Some(Format::Qcow2), "a.qcow2"),
            ("raw:a.qcow2", None, Some(Format::Raw), "a.qcow2"),
            ("a.qcow2", Some(Format::Raw), Some(Format::Raw), "a.qcow2"),
            ("qcow2:/a", None, Some(Format::Qcow2), "/a"),
            ("./a:b", None, None, "./a:b"),
        ] {
            let image = parse(text, format).unwrap();
            assert_eq!((image.said, image.path.to_str()), (said, Some(path)), "{text}");
        }
        let error = parse("qcow2:/a", Some(Format::Raw)).unwrap_err();
        assert_eq!(error, r#"PATH: image: found "qcow2:/a", expected one format (it is raw already)"#);
        assert!(parse("vhd:/a", None).unwrap_err().starts_with(r#"PATH: image: found "vhd:/a", expected"#));
    }
}
