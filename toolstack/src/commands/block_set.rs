//! `xpv block-set`: changes the limits of a disk while it is used.

use ring_abi::blkif::key;
use ring_abi::blkif::vdev::Vdev;
use xenstore::Nodes;

use crate::config::DiskLimits;
use crate::control::client;
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::listed_device::ListedDevice;
use crate::machine::listing::Listing;

/// Change the limits of a disk
///
/// The disk stays connected, and requests that wait are limited as the new values say. It is one of the machine in DIR, or else of the
/// Xen host that this program runs on. The change lasts until the disk is detached. See docs/limits.md.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The disk: its name in the guest, or its number
    vdev: String,

    /// What to change: iops-total=, iops-read=, iops-write= (requests a second), bps-total=, bps-read=, bps-write= (bytes a second: 1048576,
    /// 1M), each with -max= (a burst's rate) and -max-length= (its seconds), iops-size= (bytes of one request), throttle-group=
    /// (disks that share their limits). 0 is no limit; nothing after the '=' is what dom0's --policy says
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// What is to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    set: DiskLimits,
    removed: Vec<&'static str>,
}

/// Changes all of the settings, or none.
///
/// # Errors
/// A setting is unknown or its value invalid, also beside those that are in force; there is no such disk, or another program serves it.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let origin = Origin::argument("KEY=VALUE");
    let settings = Settings::parse(&origin, &args.settings)?;
    let Some(vdev) = Vdev::parse(&args.vdev) else {
        let expected = "a device name such as xvda, or a number";
        return Err(Origin::argument("VDEV").invalid("disk: vdev", &args.vdev, expected));
    };
    let mut listing = Listing::open(dir, args.xen)?;
    let domain = listing.find_guest(&args.domain)?;
    let mut devices = listing.devices(domain.domid, "vbd")?.into_iter();
    let Some(device) = devices.find(|device| device.id == vdev.number()) else {
        return Err(Error::Other(format!("{} has no disk {}", domain.name, args.vdev)));
    };
    let served = client::devices(dir, domain.domid.0);
    let known = device.served(&served);
    // One that waits to be served has an error.
    let is_foreign = known.is_some_and(|known| known.limits.is_none() && known.error.is_none());
    if device.backend_kind != "vbd" || is_foreign {
        let what = "is not served by xpv, or by a version without limits";
        return Err(Error::Other(format!("disk {} of {} {what}", args.vdev, domain.name)));
    }
    let limits = known.and_then(|known| known.limits.as_ref());
    let in_force = |name: &str| limits?.get(name).map(|value| value.to_string());
    settings.write(&origin, &mut listing, &device, in_force)
}

impl Settings {
    fn parse(origin: &Origin, texts: &[String]) -> Result<Settings> {
        let mut settings = Settings::default();
        for text in texts {
            let unknown = || origin.invalid("disk", text, "a limit such as iops-total=500 or bps-read=10M");
            let (name, value) = text.split_once('=').ok_or_else(unknown)?;
            if value.is_empty() {
                let name = crate::config::disk_limits::names().find(|known| *known == name);
                settings.removed.push(name.ok_or_else(unknown)?);
            } else {
                settings.set.set(origin, name, value).unwrap_or_else(|| Err(unknown()))?;
            }
        }
        Ok(settings)
    }

    /// Writes the keys, at once for the backend. `in_force` is what is in force of what the store does not say.
    fn write(
        &self,
        origin: &Origin,
        listing: &mut Listing,
        device: &ListedDevice,
        in_force: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        let path = |name: &str| format!("{}/{name}", device.backend_path);
        let mut stored = std::collections::BTreeMap::new();
        for name in key::LIMITS.into_iter().flatten().chain([key::IOPS_SIZE]) {
            if let Some(value) = listing.store().read_opt(&path(name))? {
                stored.insert(name, String::from_utf8_lossy(&value).into_owned());
            }
        }
        self.set.check(origin, |name| {
            let is_removed = self.removed.contains(&name);
            let stored = stored.get(name).cloned().filter(|_| !is_removed);
            stored.or_else(|| in_force(name).filter(|_| !is_removed))
        })?;
        Ok(listing.store().transaction(|tx| {
            for (name, value) in self.set.iter() {
                tx.write(&path(name), value)?;
            }
            for name in &self.removed {
                if tx.exists(&path(name))? {
                    tx.rm(&path(name))?;
                }
            }
            Ok(())
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Settings> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        Settings::parse(&Origin::argument("KEY=VALUE"), &texts)
    }

    #[test]
    fn settings_are_read_as_the_disks_line_has_them_and_nothing_removes_a_key() {
        let settings = parse(&["iops-total=500", "bps-read=1M", "bps-write=", "throttle-group="]).unwrap();
        assert_eq!(settings.set.iter().collect::<Vec<_>>(), [("bps-read", "1048576"), ("iops-total", "500")]);
        assert_eq!(settings.removed, ["bps-write", "throttle-group"]);
    }

    #[test]
    fn bad_setting_is_rejected_with_what_was_found_and_expected() {
        for (text, expected) in [
            ("iops-total", "found \"iops-total\", expected a limit such as"),
            ("iops=5", "found \"iops=5\", expected a limit such as"),
            ("iops=", "found \"iops=\", expected a limit such as"),
            ("access=ro", "expected a limit such as"),
            ("iops-total=many", "disk: iops-total: found \"many\", expected a number"),
            ("iops-total=5,iops-read=5", "found \"5,iops-read=5\""),
        ] {
            let error = parse(&[text]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
