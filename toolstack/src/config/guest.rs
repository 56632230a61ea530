//! A guest to create: what an `xl.cfg` says of it, without what cannot be had here.

use std::path::Path;

use super::domain::{CreateInfo, Placed};
use super::{DiskSpec, DomainConfig, VifSpec, Warnings};
use crate::error::{Origin, Result};

/// The configuration of a guest.
///
/// ```
/// use toolstack::config::GuestConfig;
/// use toolstack::error::Origin;
///
/// let text = "name = 'web'\nmemory = 512\ndisk = ['/srv/a.img,,xvda']\nvif = ['bridge=xenbr0']";
/// let guest = GuestConfig::parse(&Origin::argument("web.cfg"), text, &[]).unwrap();
/// assert_eq!((guest.name.as_str(), guest.disks.len(), guest.vifs.len()), ("web", 1, 1));
/// let warning = "web.cfg: no effect, as a guest here is a process: memory (line 2)";
/// assert_eq!(guest.warnings.line().unwrap(), warning);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// The guest's name, which is unique.
    pub name: String,
    /// The guest's disks, each with a device number of its own.
    pub disks: Vec<DiskSpec>,
    /// The guest's interfaces, each with a device number of its own.
    pub vifs: Vec<VifSpec>,
    /// The user as whom the guest's process runs, and alone may; the one that creates it if `None`.
    pub uid: Option<Placed<u32>>,
    /// Settings that have no effect.
    pub warnings: Warnings,
}

impl GuestConfig {
    /// Reads and parses a file. `overrides` are further settings, as in `memory=512`, which replace those of the file.
    ///
    /// # Errors
    /// [`crate::error::Error::File`] if it cannot be read; [`crate::error::Error::Input`] names line, key, value found and
    /// what is valid.
    pub fn read(path: &Path, overrides: &[String]) -> Result<GuestConfig> {
        let mut warnings = Warnings::default();
        let domain = DomainConfig::read(path, overrides, &mut warnings)?;
        GuestConfig::new(domain, warnings)
    }

    /// Parses the text of a file, and settings that replace those of the file.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names line, key, value found and what is valid.
    pub fn parse(origin: &Origin, text: &str, overrides: &[String]) -> Result<GuestConfig> {
        let mut warnings = Warnings::default();
        let domain = DomainConfig::parse(origin, text, overrides, &mut warnings)?;
        GuestConfig::new(domain, warnings)
    }

    fn new(domain: DomainConfig, mut warnings: Warnings) -> Result<GuestConfig> {
        let DomainConfig { create_info: CreateInfo { name }, disks, vifs, uid, .. } = domain;
        if !is_guest_name(&name.value) {
            return Err(name.origin.invalid("name", &name.value, NAME_EXPECTED));
        }
        let disks = disks.into_iter().map(|Placed { origin, value }| {
            let disk = DiskSpec::new(&origin, value, &mut warnings)?;
            Ok((origin, disk))
        });
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let vifs = vifs.into_iter().map(|Placed { origin, value }| {
            let vif = VifSpec::new(&origin, value, &mut warnings)?;
            Ok((origin, vif))
        });
        let vifs = vifs.collect::<Result<Vec<_>>>()?;
        let uid = uid.map(number_of_user).transpose()?;
        distinct_disks(&disks)?;
        distinct_vifs(&vifs)?;
        Ok(GuestConfig {
            name: name.value,
            disks: disks.into_iter().map(|(_, disk)| disk).collect(),
            vifs: vifs.into_iter().map(|(_, vif)| vif).collect(),
            uid,
            warnings,
        })
    }
}

/// The last number of a user: the next one stands for none (`setresuid(2)`).
const LAST_USER: u32 = u32::MAX - 1;

fn number_of_user(Placed { origin, value: text }: Placed<String>) -> Result<Placed<u32>> {
    match text.parse() {
        Ok(value) if (1..=LAST_USER).contains(&value) => Ok(Placed { origin, value }),
        _ => Err(origin.invalid(
            "uid",
            &text,
            format!("the number of a user who is not root, from 1 to {LAST_USER}"),
        )),
    }
}

const NAME_EXPECTED: &str =
    "a name: 1 to 64 bytes without / and control characters, not a number alone, and neither . nor ..";

/// Whether this is a valid guest name: what xl takes, but for a number, which would be taken for a domain's id, and for what
/// cannot name a directory.
pub fn is_guest_name(name: &str) -> bool {
    let is_number = name.bytes().all(|b| b.is_ascii_digit());
    let fine = |c: char| c != '/' && !c.is_control();
    (1..=64).contains(&name.len()) && name.chars().all(fine) && !is_number && name != "." && name != ".."
}

fn distinct_disks(disks: &[(Origin, DiskSpec)]) -> Result<()> {
    for (at, (here, disk)) in disks.iter().enumerate() {
        if disks[..at].iter().any(|(_, earlier)| earlier.vdev == disk.vdev) {
            return Err(here.invalid("disk: vdev", &disk.dev, "a device that no other disk is"));
        }
    }
    Ok(())
}

fn distinct_vifs(vifs: &[(Origin, VifSpec)]) -> Result<()> {
    for (at, (here, vif)) in vifs.iter().enumerate() {
        let earlier = || vifs[..at].iter().map(|(_, earlier)| earlier);
        if earlier().any(|earlier| earlier.devid == vif.devid) {
            let devid = vif.devid.unwrap_or_default().to_string();
            return Err(here.invalid("vif: devid", &devid, "a number that no other vif has"));
        }
        if vif.mac.is_some() && earlier().any(|earlier| earlier.mac == vif.mac) {
            let mac = vif.mac.map(|mac| mac.to_string()).unwrap_or_default();
            return Err(here.invalid("vif: mac", &mac, "an address that no other vif has"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
