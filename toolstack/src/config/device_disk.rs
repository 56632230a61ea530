//! A disk as xl parses it: `format=raw, vdev=xvda, access=rw, target=/img`, or by position `/img,raw,xvda,rw`, with the
//! deprecated prefixes (`phy:`, `file:`, `raw:`). What xl accepts is accepted, whether it can be attached here or not.
//!
//! Source: xl-disk-configuration(5), and what `xl -N block-attach` of Xen 4.17 prints.

use serde::Serialize;

use super::target::is_prefix;
use super::{DiskLimits, json};
use crate::error::{Error, Origin, Result};

/// A disk in the words of xl, which are libxl's members of `libxl_device_disk` where they are serialized. `None` is absent.
///
/// ```
/// use toolstack::config::DeviceDisk;
/// use toolstack::error::Origin;
///
/// let disk = DeviceDisk::parse(&Origin::argument("DISK"), &["phy:vg/a,hdc:cdrom,r"]).unwrap();
/// assert_eq!((disk.target.as_deref(), disk.vdev.as_str(), disk.is_cdrom), (Some("vg/a"), "hdc", true));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // each is documented by xl-disk-configuration(5)
pub struct DeviceDisk {
    #[serde(rename = "backend_domname", skip_serializing_if = "Option::is_none")]
    pub backend_domain: Option<String>,
    /// An empty text is a drive without a medium.
    #[serde(rename = "pdev_path", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub vdev: String,
    #[serde(rename = "backend", skip_serializing_if = "Option::is_none")]
    pub backend_type: Option<String>,
    pub format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    #[serde(serialize_with = "json::integer", skip_serializing_if = "json::is_false")]
    pub removable: bool,
    #[serde(rename = "readwrite", serialize_with = "json::integer", skip_serializing_if = "json::is_false")]
    pub writable: bool,
    /// `access=w!`, which xl does not know: other writers may have the image too.
    #[serde(skip)]
    pub shared: bool,
    /// `detect-zeroes`, which xl does not know: `off` or `unmap`.
    #[serde(skip)]
    pub detect_zeroes: Option<String>,
    #[serde(serialize_with = "json::integer", skip_serializing_if = "json::is_false")]
    pub is_cdrom: bool,
    #[serde(skip_serializing_if = "json::is_false")]
    pub direct_io_safe: bool,
    #[serde(
        rename = "discard_enable",
        serialize_with = "json::defbool",
        skip_serializing_if = "Option::is_none"
    )]
    pub discard: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specification: Option<String>,
    #[serde(
        rename = "colo_enable",
        serialize_with = "json::defbool",
        skip_serializing_if = "Option::is_none"
    )]
    pub colo: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colo_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colo_port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colo_export: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_disk: Option<String>,
    #[serde(serialize_with = "json::defbool", skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
    #[serde(serialize_with = "json::defbool", skip_serializing_if = "Option::is_none")]
    pub grant_usage: Option<bool>,
    /// `iops-total=` and so on, which xl does not know.
    #[serde(skip)]
    pub limits: DiskLimits,
}

/// Deprecated prefixes that chose a driver; they have no effect.
const IGNORED_PREFIXES: [&str; 7] = ["tapdisk:", "tap2:", "tap:", "aio:", "ioemu:", "file:", "phy:"];
/// Deprecated prefixes that give the format.
const FORMAT_PREFIXES: [&str; 4] = ["raw:", "qcow:", "qcow2:", "vhd:"];
/// Deprecated prefixes that name a script.
const SCRIPT_PREFIXES: [&str; 4] = ["iscsi:", "nbd:", "enbd:", "drbd:"];

const FORMATS: &[&str] = &["raw", "qcow", "qcow2", "vhd", "empty", "qed"];
const BACKEND_TYPES: &[&str] = &["phy", "tap", "qdisk", "standalone"];
const SPECIFICATIONS: &[&str] = &["xen", "virtio"];
const DETECT_ZEROES: &[&str] = &["off", "unmap"];

const KNOWN: &str = "a known parameter: target, format, vdev, access, devtype, cdrom, backend, backendtype, script, discard, \
    no-discard, detect-zeroes, direct-io-safe, trusted, untrusted, specification, grant_usage=0, grant_usage=1, a limit such as iops-total=500 or bps-read=10M, or one of COLO";

impl DeviceDisk {
    /// Parses a disk that is written in one text, or one after the other in several.
    ///
    /// # Errors
    /// [`Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, texts: &[impl AsRef<str>]) -> Result<DeviceDisk> {
        let disk = DeviceDisk { writable: true, ..DeviceDisk::default() };
        let mut scanner =
            Scanner { origin, disk, vdev: None, format: None, old_syntax: false, access_set: false };
        texts.iter().try_for_each(|text| scanner.scan(text.as_ref()))?;
        scanner.finish()
    }
}

struct Scanner<'a> {
    origin: &'a Origin,
    disk: DeviceDisk,
    vdev: Option<String>,
    format: Option<String>,
    /// A deprecated prefix was found, after which the format has no position.
    old_syntax: bool,
    /// The access was given by position.
    access_set: bool,
}

impl Scanner<'_> {
    fn scan(&mut self, text: &str) -> Result<()> {
        let blanks = [' ', '\t', '\n'];
        let mut rest = text.trim_start_matches(blanks);
        while !rest.is_empty() {
            if let Some(target) = rest.strip_prefix("target=") {
                // It takes the rest of the text.
                let target = target.strip_suffix(',').unwrap_or(target);
                return set(self.origin, "target", &mut self.disk.target, target);
            }
            rest = match self.strip_prefix(rest)? {
                Some(after) => after,
                None => {
                    let (piece, after) = rest.split_once(',').unwrap_or((rest, ""));
                    self.piece(piece)?;
                    after
                }
            }
            .trim_start_matches(blanks);
        }
        Ok(())
    }

    /// Strips a deprecated prefix; `None` if there is none.
    fn strip_prefix<'t>(&mut self, text: &'t str) -> Result<Option<&'t str>> {
        let found = |list: &[&'static str]| list.iter().find(|prefix| text.starts_with(**prefix)).copied();
        if let Some(prefix) = found(&FORMAT_PREFIXES) {
            self.set_format(prefix.trim_end_matches(':'))?;
            return Ok(self.stripped(text, prefix));
        }
        if let Some(prefix) = found(&SCRIPT_PREFIXES) {
            let script = format!("block-{}", prefix.trim_end_matches(':'));
            set(self.origin, "script", &mut self.disk.script, &script)?;
            return Ok(self.stripped(text, prefix));
        }
        if let Some(prefix) = found(&IGNORED_PREFIXES) {
            return Ok(self.stripped(text, prefix));
        }
        match text.split_once(':') {
            Some((word, after)) if is_prefix(word) && !after.starts_with(is_word) => {
                Err(invalid(self.origin, "target", text, "a path without this prefix, which is unknown"))
            }
            _ => Ok(None),
        }
    }

    fn stripped<'t>(&mut self, text: &'t str, prefix: &str) -> Option<&'t str> {
        self.old_syntax = true;
        Some(&text[prefix.len()..])
    }

    fn piece(&mut self, piece: &str) -> Result<()> {
        let disk = &mut self.disk;
        match piece {
            "cdrom" => disk.is_cdrom = true,
            "direct-io-safe" => disk.direct_io_safe = true,
            "discard" => disk.discard = Some(true),
            "no-discard" => disk.discard = Some(false),
            "colo" => disk.colo = Some(true),
            "no-colo" => disk.colo = Some(false),
            "trusted" => disk.trusted = Some(true),
            "untrusted" => disk.trusted = Some(false),
            _ => {
                return match piece.split_once('=') {
                    Some((name, value)) => self.named(piece, name, value),
                    None => self.positional(piece),
                };
            }
        }
        Ok(())
    }

    fn named(&mut self, piece: &str, name: &str, value: &str) -> Result<()> {
        let origin = self.origin;
        let disk = &mut self.disk;
        match name {
            "format" => return self.set_format(value),
            "access" => return self.set_access(value),
            "devtype" => disk.is_cdrom = is_cdrom(origin, value)?,
            "vdev" => return set(origin, name, &mut self.vdev, value),
            "backend" => return set(origin, name, &mut disk.backend_domain, value),
            "script" => return set(origin, name, &mut disk.script, value),
            "detect-zeroes" => return choose(origin, name, &mut disk.detect_zeroes, value, DETECT_ZEROES),
            "backendtype" => return choose(origin, name, &mut disk.backend_type, value, BACKEND_TYPES),
            "specification" => return choose(origin, name, &mut disk.specification, value, SPECIFICATIONS),
            "colo-host" => return set(origin, name, &mut disk.colo_host, value),
            "colo-export" => return set(origin, name, &mut disk.colo_export, value),
            "active-disk" => return set(origin, name, &mut disk.active_disk, value),
            "hidden-disk" => return set(origin, name, &mut disk.hidden_disk, value),
            "colo-port" => {
                let port = value.parse().ok().filter(|port| *port != 0);
                disk.colo_port = Some(port.ok_or_else(|| invalid(origin, name, value, "a port"))?);
            }
            "grant_usage" if ["0", "1"].contains(&value) => disk.grant_usage = Some(value == "1"),
            _ if disk.limits.has(name) => return Err(invalid(origin, name, value, "it once")),
            _ => {
                let limit = disk.limits.set(origin, name, value);
                return limit.unwrap_or_else(|| Err(origin.invalid("disk", piece, KNOWN)));
            }
        }
        Ok(())
    }

    /// Stores the next parameter by position: target, format unless a prefix gave one, vdev, access.
    fn positional(&mut self, piece: &str) -> Result<()> {
        let Some(target) = &self.disk.target else {
            self.disk.target = Some(piece.to_owned());
            return Ok(());
        };
        if !self.old_syntax && self.format.is_none() {
            // `,hdc:cdrom,r`: no target, and no format either.
            if target.is_empty() && self.vdev_and_type(piece)? {
                self.format = Some("empty".to_owned());
                return Ok(());
            }
            return self.set_format(piece);
        }
        if self.vdev.is_none() {
            if !self.vdev_and_type(piece)? {
                self.vdev = Some(piece.to_owned());
            }
            return Ok(());
        }
        if std::mem::replace(&mut self.access_set, true) {
            let expected = "no more than target, format, vdev and access by position";
            return Err(self.origin.invalid("disk", piece, expected));
        }
        self.set_access(piece)
    }

    /// Stores the deprecated `xvda:cdrom`; `false` if this is none.
    fn vdev_and_type(&mut self, piece: &str) -> Result<bool> {
        let Some((vdev, kind)) = piece.rsplit_once(':') else { return Ok(false) };
        set(self.origin, "vdev", &mut self.vdev, vdev)?;
        self.disk.is_cdrom = is_cdrom(self.origin, kind)?;
        Ok(true)
    }

    fn set_access(&mut self, access: &str) -> Result<()> {
        (self.disk.writable, self.disk.shared) = match access {
            "rw" | "w" | "" => (true, false),
            "w!" => (true, true),
            "ro" | "r" => (false, false),
            other => return Err(invalid(self.origin, "access", other, "ro, r, rw, w, or w! to share it")),
        };
        Ok(())
    }

    fn set_format(&mut self, format: &str) -> Result<()> {
        let format = if format.is_empty() { "raw" } else { format };
        choose(self.origin, "format", &mut self.format, format, FORMATS)
    }

    fn finish(self) -> Result<DeviceDisk> {
        let mut disk = self.disk;
        disk.format = self.format.unwrap_or_else(|| "raw".to_owned());
        if disk.is_cdrom {
            disk.removable = true;
            disk.writable = false;
            if disk.target.as_deref().is_none_or(str::is_empty) {
                disk.format = "empty".to_owned();
            }
        }
        disk.vdev = self.vdev.ok_or_else(|| {
            self.origin.missing("disk: vdev", "a device name: xvda, sdb1, hdc, d0p0 or a number")
        })?;
        disk.limits.check(self.origin, |_| None)?;
        if disk.target.is_none() && !disk.removable {
            return Err(self.origin.missing("disk: target", "the path of an image file or a block device"));
        }
        Ok(disk)
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_cdrom(origin: &Origin, kind: &str) -> Result<bool> {
    match kind {
        "cdrom" => Ok(true),
        "disk" => Ok(false),
        other => Err(invalid(origin, "devtype", other, "disk or cdrom")),
    }
}

/// Sets a text, which may be given again only if it was empty.
fn set(origin: &Origin, name: &str, text: &mut Option<String>, value: &str) -> Result<()> {
    if let Some(old) = text.as_deref().filter(|old| !old.is_empty()) {
        return Err(invalid(origin, name, value, format!("it once (it is {old:?} already)")));
    }
    *text = Some(value.to_owned());
    Ok(())
}

/// Sets one of several values, which may be given again if it is the same.
fn choose(origin: &Origin, name: &str, chosen: &mut Option<String>, value: &str, of: &[&str]) -> Result<()> {
    if !of.contains(&value) {
        return Err(invalid(origin, name, value, format!("one of {}", of.join(", "))));
    }
    if let Some(old) = chosen.as_deref().filter(|old| *old != value) {
        return Err(invalid(origin, name, value, format!("it once (it is {old:?} already)")));
    }
    *chosen = Some(value.to_owned());
    Ok(())
}

fn invalid(origin: &Origin, name: &str, found: &str, expected: impl Into<String>) -> Error {
    origin.invalid(&format!("disk: {name}"), found, expected)
}

#[cfg(test)]
mod tests;
