//! The description of a disk, parsed from the toolstack's keys `params`, `mode`, `device-type`, `direct-io-safe` and
//! `discard-enable`.

use std::path::PathBuf;
use std::str::FromStr;

use ring_abi::blkif::key::{DEVICE_TYPE, DIRECT_IO_SAFE, DISCARD_ENABLE, MODE, PARAMS, PHYSICAL_DEVICE};
use xenbus::{KeyError, Keys};

/// The key `mode`: what the guest may do, and who else may use the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `r`: read only, shared with other readers.
    Read,
    /// `w`: read and write, exclusively.
    Write,
    /// `w!`: read and write, shared with other writers.
    WriteShared,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Mode, ()> {
        match text {
            "r" | "ro" => Ok(Mode::Read),
            "w" | "rw" => Ok(Mode::Write),
            "w!" | "!" => Ok(Mode::WriteShared),
            _ => Err(()),
        }
    }
}

impl Mode {
    /// Whether the guest may only read.
    pub fn read_only(self) -> bool {
        self == Mode::Read
    }
}

/// The medium of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `/path`, `raw:/path`, `aio:/path`, `file:/path`, `phy:/path`: a raw image or a block device.
    Raw(PathBuf),
    /// `qcow2:/path`: a qcow2 image, and those that it names as below it.
    Qcow2(PathBuf),
    /// `null:<bytes>`: a disk without content.
    Null(u64),
    /// `ram:<bytes>`: memory, zeroed at first.
    Ram(u64),
    /// Nothing, in a drive of removable media: it has no medium.
    Empty,
}

/// The description of a disk.
///
/// ```
/// use blkback::engine::{Mode, Spec};
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/0/backend/vbd/1/51712").with("params", "/srv/a.img").with("mode", "r");
/// assert_eq!(Spec::from_keys(&keys), Ok(Spec::raw("/srv/a.img", Mode::Read)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The medium.
    pub source: Source,
    /// What the guest may do with it.
    pub mode: Mode,
    /// `direct-io-safe` is absent or not 0: the host's page cache may be bypassed. Writes are then as durable as
    /// the medium's own cache; a flush makes them durable in any case.
    pub direct: bool,
    /// A CD-ROM: read-only and removable whatever `mode` says.
    pub cdrom: bool,
    /// A number of the device that uses the image, the same in every process that serves it; it is no key.
    pub user: Option<u64>,
    /// `physical-device`: the loop device that Xen's `block` script has made of the file, for backends that take devices alone.
    pub own_loop: Option<(u64, u64)>,
    /// `discard-enable` is absent or not 0: discard is offered where the medium supports it.
    pub discard: bool,
}

impl Spec {
    /// A raw image or block device.
    pub fn raw(path: impl Into<PathBuf>, mode: Mode) -> Spec {
        let source = Source::Raw(path.into());
        Spec { source, mode, direct: true, cdrom: false, user: None, own_loop: None, discard: true }
    }

    /// Parses a backend's keys; an absent `mode` is `w`.
    ///
    /// # Errors
    /// `params` is absent or malformed, `mode` is none, or `discard-enable` is no number.
    pub fn from_keys(keys: &Keys) -> Result<Spec, KeyError> {
        const EXPECTED: &str = "an absolute path, raw:<absolute path>, qcow2:<absolute path>, null:<bytes> or ram:<bytes>, bytes a multiple of 512";
        let invalid = || keys.error(PARAMS, EXPECTED);
        let cdrom = keys.get(DEVICE_TYPE).is_some_and(|kind| kind.trim_ascii() == "cdrom");
        let source = match keys.get(PARAMS).ok_or_else(invalid)? {
            "" if cdrom => Source::Empty,
            params => parse(params).ok_or_else(invalid)?,
        };
        let mode = match keys.get(MODE) {
            None => Mode::Write,
            Some(text) => text.trim_ascii().parse().map_err(|()| keys.error(MODE, "r, w or w!"))?,
        };
        let direct = keys.get(DIRECT_IO_SAFE).is_none_or(|d| d.trim_ascii() != "0");
        let mode = if cdrom { Mode::Read } else { mode };
        let own_loop = keys.get(PHYSICAL_DEVICE).and_then(device_number);
        let discard = keys.or(DISCARD_ENABLE, 1u32)? != 0;
        Ok(Spec { source, mode, direct, cdrom, user: None, own_loop, discard })
    }
}

fn parse(params: &str) -> Option<Source> {
    const AFTER_TAP: [&str; 4] = ["aio:", "raw:", "qcow2:", "/"];
    let raw = |path: &str| path.starts_with('/').then(|| Source::Raw(path.into()));
    match params.split_once(':') {
        _ if params.starts_with('/') => raw(params),
        // xm's words, which name QEMU's or blktap's driver: `tap:aio:/path`.
        Some(("tap" | "tap2", rest)) if AFTER_TAP.iter().any(|words| rest.starts_with(words)) => parse(rest),
        Some(("raw" | "aio" | "file" | "phy", path)) => raw(path),
        Some(("qcow2", path)) => path.starts_with('/').then(|| Source::Qcow2(path.into())),
        Some(("null", bytes)) => Some(Source::Null(whole_sectors(bytes)?)),
        Some(("ram", bytes)) => Some(Source::Ram(whole_sectors(bytes)?)),
        _ => None,
    }
}

/// Parses a device's number as Xen's hotplug scripts write it: `7:1f`, both parts in hexadecimal.
fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.trim_ascii().split_once(':')?;
    Some((u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?))
}

fn whole_sectors(bytes: &str) -> Option<u64> {
    bytes.parse().ok().filter(|bytes: &u64| *bytes > 0 && bytes.is_multiple_of(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(params: &str, mode: &str) -> Result<Spec, String> {
        let keys = Keys::new("/b").with(PARAMS, params).with(MODE, mode);
        Spec::from_keys(&keys).map_err(|e| e.to_string())
    }

    #[test]
    fn valid_keys_describe_a_disk() {
        assert_eq!(spec("/a:b.img", "r").unwrap(), Spec::raw("/a:b.img", Mode::Read));
        assert_eq!(spec("raw:/a", "w").unwrap(), Spec::raw("/a", Mode::Write));
        assert_eq!(spec("/a", "w!").unwrap().mode, Mode::WriteShared);
        assert_eq!(spec("qcow2:/a", "w").unwrap().source, Source::Qcow2("/a".into()));
        for params in ["tap:aio:/a", "tap2:aio:/a", "tap:raw:/a", "file:/a", "phy:/a"] {
            assert_eq!(spec(params, "w").unwrap(), Spec::raw("/a", Mode::Write), "{params}");
        }
        assert_eq!(spec("tap:qcow2:/a", "w").unwrap().source, Source::Qcow2("/a".into()));
        assert_eq!(spec("null:1024", "w").unwrap().source, Source::Null(1024));
        assert_eq!(spec("ram:512", "w").unwrap().source, Source::Ram(512));
        assert_eq!(Spec::from_keys(&Keys::new("/b").with(PARAMS, "/a")).unwrap().mode, Mode::Write);
    }

    #[test]
    fn cdrom_is_read_only_and_may_have_no_medium() {
        let keys =
            |params: &str| Keys::new("/b").with(PARAMS, params).with(MODE, "w").with(DEVICE_TYPE, "cdrom");
        let iso = Spec::from_keys(&keys("/a.iso")).unwrap();
        assert_eq!((iso.mode, iso.cdrom), (Mode::Read, true));
        assert_eq!(Spec::from_keys(&keys("")).unwrap().source, Source::Empty);
        assert!(Spec::from_keys(&keys("a.iso")).is_err());
    }

    #[test]
    fn device_of_the_hotplug_script_is_read_in_hexadecimal() {
        for (text, number) in [("7:1f", Some((7, 31))), ("fe:0", Some((254, 0))), ("7", None), ("7:x", None)]
        {
            let keys = Keys::new("/b").with(PARAMS, "/a").with(PHYSICAL_DEVICE, text);
            assert_eq!(Spec::from_keys(&keys).unwrap().own_loop, number, "{text}");
        }
    }

    #[test]
    fn discard_is_wanted_unless_the_toolstack_says_no() {
        let keys = Keys::new("/b").with(PARAMS, "/a");
        assert!(Spec::from_keys(&keys).unwrap().discard);
        assert!(Spec::from_keys(&keys.clone().with(DISCARD_ENABLE, 1)).unwrap().discard);
        assert!(!Spec::from_keys(&keys.clone().with(DISCARD_ENABLE, 0)).unwrap().discard);
        let error = Spec::from_keys(&keys.with(DISCARD_ENABLE, "no")).unwrap_err().to_string();
        assert!(error.starts_with(r#"/b/discard-enable: found "no""#), "{error}");
    }

    #[test]
    fn invalid_keys_are_refused_by_name() {
        for params in [
            "",
            "a.img",
            "raw:a",
            "qcow2:a",
            "vhd:/a",
            "tap:ram:512",
            "raw:qcow2:/a",
            "tap:tap:/a",
            "ram:511",
            "ram:0",
            "null:x",
        ] {
            let error = spec(params, "w").unwrap_err();
            assert!(error.starts_with("/b/params: found") && error.contains("absolute path"), "{error}");
        }
        assert_eq!(spec("/a", "x").unwrap_err(), r#"/b/mode: found "x", expected r, w or w!"#);
        let missing = Spec::from_keys(&Keys::new("/b")).unwrap_err().to_string();
        assert!(missing.starts_with("/b/params: missing, expected"), "{missing}");
    }
}
