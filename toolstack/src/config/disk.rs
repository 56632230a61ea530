//! A disk to attach: what xl makes of its text, without what cannot be had here.

use std::path::PathBuf;

use blkback::engine::format::Format;
use ring_abi::blkif::vdev::Vdev;

use super::target::Target;
use super::{DeviceDisk, DiskLimits, Warnings};
use crate::error::{Origin, Result};

/// A disk to attach.
///
/// ```
/// use toolstack::config::{DiskSpec, Warnings};
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("DISK");
/// let disk = DiskSpec::parse(&origin, &["/srv/a.img,raw,xvda,ro"], &mut Warnings::default()).unwrap();
/// assert_eq!((disk.vdev, disk.writable), (51712, false));
/// let error = DiskSpec::parse(&origin, &["/srv/a.img,vhd,xvda"], &mut Warnings::default()).unwrap_err();
/// assert!(error.to_string().starts_with(r#"DISK: disk: format: found "vhd", expected raw or qcow2"#));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image file or block device; absolute. `None` is a drive without a medium.
    pub target: Option<PathBuf>,
    /// How the guest's bytes lie there.
    pub format: Format,
    /// The device's name in the guest, e.g. `xvda`.
    pub dev: String,
    /// The virtual device number of that name, which identifies the device in the store.
    pub vdev: u32,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether others may have the image too while the guest may write.
    pub shared: bool,
    /// `device-type` is `cdrom` rather than `disk`; it is read-only.
    pub cdrom: bool,
    /// Whether discard is offered.
    pub discard: bool,
    /// Whether zeroes that the guest writes become holes, where discard is offered.
    pub detect_zeroes: bool,
    /// Whether the backend may use direct I/O without safe-guards.
    pub direct_io_safe: bool,
    /// Whether the guest's frontend is to trust the backend.
    pub trusted: bool,
    /// The script that xl runs.
    pub script: Option<String>,
    /// How many requests and bytes a second the guest may have.
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// Parses a disk that is written in one text, or one after the other in several. Parameters without effect are added to
    /// `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, texts: &[impl AsRef<str>], warnings: &mut Warnings) -> Result<DiskSpec> {
        DiskSpec::new(origin, DeviceDisk::parse(origin, texts)?, warnings)
    }

    /// Makes a disk of what xl has parsed. Parameters without effect are added to `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter that xl supports and this program does not, and what is valid.
    pub fn new(origin: &Origin, disk: DeviceDisk, warnings: &mut Warnings) -> Result<DiskSpec> {
        refuse_unsupported(origin, &disk)?;
        warn(origin, &disk, warnings);
        let expected = "a device name: xvda, sdb1, hdc, d0p0 or a number";
        let vdev = Vdev::parse(&disk.vdev);
        let vdev = vdev.ok_or_else(|| origin.invalid("disk: vdev", &disk.vdev, expected))?;
        let target = disk.target.filter(|target| !target.is_empty() && disk.format != "empty");
        if target.is_none() && !disk.is_cdrom {
            return Err(origin.missing("disk: target", "the path of an image file or a block device"));
        }
        let target = target.map(|target| Target::parse(origin, &disk.format, &target)).transpose()?;
        Ok(DiskSpec {
            format: target.as_ref().map_or(Format::Raw, |target| target.format),
            target: target.map(|target| target.path),
            dev: disk.vdev,
            vdev: vdev.number(),
            writable: disk.writable,
            shared: disk.shared && disk.writable,
            cdrom: disk.is_cdrom,
            discard: disk.discard.unwrap_or(disk.writable),
            detect_zeroes: disk.detect_zeroes.as_deref() == Some("unmap"),
            direct_io_safe: disk.direct_io_safe,
            trusted: disk.trusted.unwrap_or(true),
            script: disk.script.filter(|script| !script.is_empty()),
            limits: disk.limits,
        })
    }
}

/// Rejects what xl supports and this program does not; the error names what is supported.
fn refuse_unsupported(origin: &Origin, disk: &DeviceDisk) -> Result<()> {
    let refuse = |name: &str, found: &str, expected: &str| {
        Err(origin.invalid(&format!("disk: {name}"), found, expected))
    };
    if disk.format == "empty" && !disk.is_cdrom {
        return refuse("format", "empty", "raw or qcow2 (a drive without a medium is a cdrom)");
    }
    if let Some(domain) = disk.backend_domain.as_deref().filter(|domain| !is_dom0(domain)) {
        return refuse("backend", domain, DRIVER_DOMAIN);
    }
    if disk.specification.as_deref() == Some("virtio") {
        return refuse("specification", "virtio", "xen (virtio is not supported)");
    }
    if disk.detect_zeroes.as_deref() == Some("unmap") && disk.discard == Some(false) {
        return refuse("detect-zeroes", "unmap", "off (with no-discard nothing becomes a hole)");
    }
    let colo = disk.colo == Some(true) || disk.colo_port.is_some();
    let texts = [&disk.colo_host, &disk.colo_export, &disk.active_disk, &disk.hidden_disk];
    if colo || texts.iter().any(|text| text.is_some()) {
        return refuse("colo", "COLO", "nothing of COLO, which is not supported");
    }
    Ok(())
}

/// What is expected of `backend`.
pub(super) const DRIVER_DOMAIN: &str =
    "Domain-0 (backend= names a driver domain, and a machine without Xen has none)";

/// Whether the value of `backend` is dom0's name, number, or empty.
pub(super) fn is_dom0(domain: &str) -> bool {
    ["", "0", "Domain-0"].contains(&domain)
}

fn warn(origin: &Origin, disk: &DeviceDisk, warnings: &mut Warnings) {
    let backend_type = disk.backend_type.as_deref().is_some_and(|kind| kind != "phy");
    let script = disk.script.as_deref().is_some_and(|script| !script.is_empty());
    let ignored = [
        ("backendtype", backend_type, "xpv serves every disk"),
        ("script", script, "scripts are not run"),
        ("grant_usage", disk.grant_usage.is_some(), "it is for virtio"),
        ("discard", disk.discard == Some(true) && !disk.writable, "the disk is read-only"),
        ("detect-zeroes", disk.detect_zeroes.is_some() && !disk.writable, "the disk is read-only"),
        ("direct-io-safe", disk.direct_io_safe, "the page cache is bypassed wherever that is possible"),
        ("untrusted", disk.trusted == Some(false), "our frontends make no difference"),
    ];
    for (name, given, why) in ignored {
        if given {
            warnings.no_effect(origin, &format!("disk: {name}"), why);
        }
    }
}

#[cfg(test)]
mod tests;
