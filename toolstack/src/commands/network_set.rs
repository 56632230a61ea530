//! `xpv network-set`: changes what a guest may send by a network interface, while it is used.

use ring_abi::netif::{Mac, key};
use xenstore::Nodes;

use crate::config::{DeviceNic, VifSpec, Warnings};
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::listing::Listing;

/// Change what a guest may send by a network interface
///
/// The interface stays connected. It is one of the machine in DIR, or else of the Xen host that this program runs on. The change
/// lasts until the interface is detached.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The guest's name or domain ID
    domain: String,

    /// The interface: its device number or its MAC address
    #[arg(value_name = "DEVID|MAC")]
    vif: String,

    /// What to change: rate=RATE, lock=off, lock=mac, lock=disabled; nothing after the '=' gives the default
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

/// A key of the backend's, and its value; none is to be removed.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    key: &'static str,
    value: Option<String>,
}

/// Changes all of the settings, or none.
///
/// # Errors
/// A setting is unknown or its value invalid; there is no such interface.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let settings = args.settings.iter().map(|text| setting(text)).collect::<Result<Vec<_>>>()?;
    let mut listing = Listing::open(dir, args.xen)?;
    let domain = listing.find_guest(&args.domain)?;
    let devid = args.vif.parse::<u32>().ok();
    let mac = args.vif.parse::<Mac>().ok().map(|mac| mac.to_string());
    for device in listing.devices(domain.domid, "vif")? {
        let its_mac = device.key(listing.store(), key::MAC)?;
        if devid != Some(device.id) && (mac.is_none() || mac != its_mac) {
            continue;
        }
        for Setting { key, value } in &settings {
            let path = format!("{}/{key}", device.backend_path);
            match value {
                Some(value) => listing.store().write(&path, value.as_bytes())?,
                None if listing.store().read_opt(&path)?.is_some() => listing.store().rm(&path)?,
                None => {}
            }
        }
        return Ok(());
    }
    Err(Error::Other(format!("{} has no vif {}", domain.name, args.vif)))
}

/// Reads a setting as the line of an interface has it.
fn setting(text: &str) -> Result<Setting> {
    let origin = Origin::argument("KEY=VALUE");
    let expected = "rate=RATE or lock=LOCK";
    let name = text.split_once('=').map(|(name, _)| name.trim());
    let key = match name {
        Some(name) if name == key::RATE => key::RATE,
        Some(name) if name == key::LOCK => key::LOCK,
        _ => return Err(origin.invalid("vif", text, expected)),
    };
    let nic = DeviceNic::parse(&origin, &[text])?;
    let vif = VifSpec::new(&origin, nic, &mut Warnings::default())?;
    let value = match key {
        key::RATE => vif.rate.map(|rate| rate.to_string()),
        _ => vif.lock.map(|lock| lock.to_string()),
    };
    // A comma separates parameters, of which there is one here.
    if text.contains(',') {
        return Err(origin.invalid("vif", text, expected));
    }
    Ok(Setting { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_interfaces_line_has_them() {
        let of = |key, value: &str| Setting { key, value: Some(value.to_owned()) };
        assert_eq!(setting("lock=off").unwrap(), of("lock", "off"));
        assert_eq!(setting("rate=8Mb/s").unwrap(), of("rate", "50000,50000"));
        assert_eq!(setting("rate=").unwrap(), Setting { key: "rate", value: None });
        assert_eq!(setting("lock=").unwrap(), Setting { key: "lock", value: None });
    }

    #[test]
    fn bad_setting_is_rejected_with_what_was_found_and_expected() {
        for (text, expected) in [
            ("lock=Mac", "found \"Mac\", expected off, mac or disabled"),
            ("mac=00:16:3e:00:00:01", "expected rate=RATE or lock=LOCK"),
            ("lock", "expected rate=RATE or lock=LOCK"),
            ("lock=off,mtu=9000", "expected rate=RATE or lock=LOCK"),
            ("rate=0", "rate"),
        ] {
            let error = setting(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
