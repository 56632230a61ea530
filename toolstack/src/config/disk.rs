//! A disk in the syntax of xl-disk-configuration(5): `format=raw, vdev=xvda, access=rw, target=/img`, or by position
//! `/img,raw,xvda,rw`; the deprecated prefixes (`phy:`, `file:`, `raw:`) are accepted.

use std::path::{Path, PathBuf};

use super::Warnings;
use super::params::Params;
use crate::error::{Origin, Result};
use ring_abi::blkif::vdev::Vdev;

/// A disk to attach.
///
/// ```
/// use toolstack::config::{DiskSpec, Warnings};
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("DISK");
/// let disk = DiskSpec::parse(&origin, "/srv/a.img,raw,xvda,ro", &mut Warnings::default()).unwrap();
/// assert_eq!((disk.vdev, disk.writable), (51712, false));
/// let error = DiskSpec::parse(&origin, "/srv/a.img,qcow2,xvda", &mut Warnings::default()).unwrap_err();
/// assert!(error.to_string().starts_with(r#"DISK: disk: format: found "qcow2", expected raw"#));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image file or block device; absolute.
    pub target: PathBuf,
    /// The device's name in the guest, e.g. `xvda`.
    pub dev: String,
    /// The virtual device number of that name, which identifies the device in the store.
    pub vdev: u32,
    /// Whether the guest may write.
    pub writable: bool,
    /// `device-type` is `cdrom` rather than `disk`.
    pub cdrom: bool,
    /// Whether discard is offered.
    pub discard: bool,
    /// Whether the backend may use direct I/O without safe-guards.
    pub direct_io_safe: bool,
    /// Whether the guest's frontend is to trust the backend.
    pub trusted: bool,
}

/// Parameters `name=value`, other than `target`, which comes last and takes the rest of the text.
const NAMED: [&str; 14] = [
    "format",
    "vdev",
    "access",
    "devtype",
    "backend",
    "backendtype",
    "script",
    "specification",
    "grant_usage",
    "colo-host",
    "colo-port",
    "colo-export",
    "active-disk",
    "hidden-disk",
];
/// Flags, and the parameter and value that each stands for.
const FLAGS: [(&str, &str, &str); 8] = [
    ("cdrom", "devtype", "cdrom"),
    ("discard", "discard", "1"),
    ("no-discard", "discard", "0"),
    ("direct-io-safe", "direct-io-safe", "1"),
    ("trusted", "trusted", "1"),
    ("untrusted", "trusted", "0"),
    ("colo", "colo", "colo"),
    ("no-colo", "colo", ""),
];
/// Deprecated prefixes that chose a driver; they have no effect.
const IGNORED_PREFIXES: [&str; 7] = ["tapdisk:", "tap2:", "tap:", "aio:", "ioemu:", "file:", "phy:"];
/// Deprecated prefixes that give the format.
const FORMAT_PREFIXES: [&str; 4] = ["raw:", "qcow:", "qcow2:", "vhd:"];
/// Deprecated prefixes that name a script.
const SCRIPT_PREFIXES: [&str; 4] = ["iscsi:", "nbd:", "enbd:", "drbd:"];

impl DiskSpec {
    /// Parses a disk. Parameters without effect are added to `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, text: &str, warnings: &mut Warnings) -> Result<DiskSpec> {
        let mut params = Params::new(origin, "disk");
        split(&mut params, text)?;
        refuse_unsupported(&mut params, warnings)?;
        finish(params)
    }
}

/// Splits the text at commas, and stores each piece as a parameter.
fn split(params: &mut Params<'_>, text: &str) -> Result<()> {
    let mut rest = text.trim_start();
    let mut old_syntax = false;
    while !rest.is_empty() {
        if let Some(target) = rest.strip_prefix("target=") {
            return params.set("target", target);
        }
        if !params.has("target") {
            let stripped = strip_prefix(params, rest)?;
            old_syntax |= stripped.len() < rest.len();
            rest = stripped;
        }
        let (piece, after) = rest.split_once(',').unwrap_or((rest, ""));
        parse_piece(params, piece, old_syntax)?;
        rest = after.trim_start();
    }
    Ok(())
}

/// Strips the deprecated prefixes, of which there may be several: `tap:aio:/img`.
fn strip_prefix<'t>(params: &mut Params<'_>, mut text: &'t str) -> Result<&'t str> {
    loop {
        let found = |list: &[&'static str]| list.iter().find(|p| text.starts_with(**p)).copied();
        if let Some(prefix) = found(&IGNORED_PREFIXES) {
            text = &text[prefix.len()..];
        } else if let Some(prefix) = found(&FORMAT_PREFIXES) {
            params.set("format", prefix.trim_end_matches(':'))?;
            text = &text[prefix.len()..];
        } else if let Some(prefix) = found(&SCRIPT_PREFIXES) {
            params.set("script", &format!("block-{}", prefix.trim_end_matches(':')))?;
            text = &text[prefix.len()..];
        } else {
            return Ok(text);
        }
    }
}

/// Stores one piece: `name=value`, a flag, or the next parameter by position.
fn parse_piece(params: &mut Params<'_>, piece: &str, old_syntax: bool) -> Result<()> {
    if let Some((name, value)) = piece.split_once('=') {
        return match NAMED.into_iter().find(|n| *n == name) {
            Some(name) => params.set(name, value),
            None => Err(params.origin().invalid(
                "disk",
                piece,
                format!("a known parameter: target, discard, direct-io-safe, {}", NAMED.join(", ")),
            )),
        };
    }
    if let Some((_, name, value)) = FLAGS.into_iter().find(|(flag, ..)| *flag == piece) {
        return params.set(name, value);
    }
    let positions: &[&'static str] =
        if old_syntax { &["target", "vdev", "access"] } else { &["target", "format", "vdev", "access"] };
    match positions.iter().find(|name| !params.has(name)) {
        Some(&"vdev") => vdev_and_type(params, piece),
        Some(name) => params.set(name, piece),
        None => Err(params.origin().invalid(
            "disk",
            piece,
            "no more than target, format, vdev and access by position",
        )),
    }
}

/// Stores `xvda`, or the deprecated `xvda:cdrom`.
fn vdev_and_type(params: &mut Params<'_>, piece: &str) -> Result<()> {
    match piece.rsplit_once(':') {
        Some((vdev, kind)) => {
            params.set("vdev", vdev)?;
            params.set("devtype", kind)
        }
        None => params.set("vdev", piece),
    }
}

/// Rejects what xl supports and this program does not; the error names what is supported.
fn refuse_unsupported(params: &mut Params<'_>, warnings: &mut Warnings) -> Result<()> {
    match params.take("format").as_deref() {
        None | Some("raw") => {}
        Some(known @ ("qcow" | "qcow2" | "vhd" | "qed" | "empty")) => {
            return Err(params.invalid("format", known, "raw (other formats are not supported yet)"));
        }
        Some(other) => return Err(params.invalid("format", other, "raw")),
    }
    if let Some(domain) = params.take("backend")
        && !["0", "Domain-0"].contains(&domain.as_str())
    {
        return Err(params.invalid("backend", &domain, "Domain-0 (driver domains are not supported yet)"));
    }
    match params.take("backendtype").as_deref() {
        None | Some("phy") => {}
        Some(other) => {
            return Err(params.invalid(
                "backendtype",
                other,
                "phy, or nothing (other backends are not supported yet)",
            ));
        }
    }
    if let Some(other) = params.take("specification").filter(|s| s != "xen") {
        return Err(params.invalid("specification", &other, "xen (virtio is not supported)"));
    }
    if params.take("grant_usage").is_some() {
        warnings.no_effect(params.origin(), &params.key("grant_usage"), "it is for virtio");
    }
    let ignored = [
        ("discard", "1", "discard is not offered yet"),
        ("direct-io-safe", "1", "the page cache is bypassed wherever that is possible"),
        ("trusted", "0", "our frontends make no difference"),
    ];
    for (name, value, why) in ignored {
        if params.is_set_to(name, value) {
            warnings.no_effect(params.origin(), &params.key(name), why);
        }
    }
    params.refuse("script", "nothing (scripts are not run; target is an image file or a block device)")?;
    for name in ["colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"] {
        params.refuse(name, "nothing (COLO is not supported)")?;
    }
    Ok(())
}

fn finish(mut params: Params<'_>) -> Result<DiskSpec> {
    let vdev_expected = "a device name: xvda, sdb1, hdc, d0p0 or a number";
    let Some(dev) = params.take("vdev") else {
        return Err(params.origin().missing(&params.key("vdev"), vdev_expected));
    };
    let Some(vdev) = Vdev::parse(&dev) else { return Err(params.invalid("vdev", &dev, vdev_expected)) };
    let cdrom = match params.take("devtype").as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(params.invalid("devtype", other, "disk or cdrom")),
    };
    let writable = match params.take("access").as_deref() {
        None => !cdrom,
        Some("rw" | "w") => true,
        Some("ro" | "r") => false,
        Some(other) => return Err(params.invalid("access", other, "ro, r, rw or w")),
    };
    let Some(target) = params.take("target") else {
        return Err(params
            .origin()
            .missing(&params.key("target"), "the path of an image file or a block device"));
    };
    Ok(DiskSpec {
        // xl-disk-configuration(5): "/dev will be prepended if the path doesn't start with a '/'".
        target: Path::new("/dev").join(target),
        dev,
        vdev: vdev.number(),
        writable,
        cdrom,
        discard: params.take("discard").map_or(writable, |d| d == "1"),
        direct_io_safe: params.take("direct-io-safe").is_some(),
        trusted: params.take("trusted").is_none_or(|t| t == "1"),
    })
}

#[cfg(test)]
mod tests;
