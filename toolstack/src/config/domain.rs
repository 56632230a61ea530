//! What an `xl.cfg` says of a domain and its devices, as xl reads it: its `name`, `disk` and `vif`. Settings of kernels, memory
//! and processors have no effect on a guest that is a process: all of them are named in a warning.

use std::path::Path;

use serde::Serialize;

use super::cfg::{self, Item, Setting, Value};
use super::{DeviceDisk, DeviceNic, Warnings, known_keys};
use crate::error::{Error, Origin, Result};

/// A domain as xl parses it. It is serialized as libxl's `libxl_domain_config`, of which it has these members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainConfig {
    /// Where the settings were read.
    #[serde(skip)]
    pub origin: Origin,
    /// The domain's own settings.
    #[serde(rename = "c_info")]
    pub create_info: CreateInfo,
    /// The disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Placed<DeviceDisk>>,
    /// The interfaces.
    #[serde(rename = "nics", skip_serializing_if = "Vec::is_empty")]
    pub vifs: Vec<Placed<DeviceNic>>,
    /// The user as whom the guest's process runs; xl does not know it.
    #[serde(skip)]
    pub uid: Option<Placed<String>>,
}

/// The members of a `libxl_domain_create_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateInfo {
    /// The domain's name.
    pub name: Placed<String>,
}

/// A value, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Placed<T> {
    /// Where it is written.
    #[serde(skip)]
    pub origin: Origin,
    /// The value.
    pub value: T,
}

impl DomainConfig {
    /// Reads and parses a file. `overrides` are further settings, as in `memory=512`, which replace those of the file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Input`] names line, key, value found and what is valid.
    pub fn read(path: &Path, overrides: &[String], warnings: &mut Warnings) -> Result<DomainConfig> {
        let text = std::fs::read(path).map_err(|e| Error::file(path, "reading the guest's cfg", e))?;
        // xl takes bytes of any encoding, most of which are in comments.
        let text = String::from_utf8_lossy(&text);
        DomainConfig::parse(&Origin::file(path), &text, overrides, warnings)
    }

    /// Parses the text of a file, and settings that replace those of the file.
    ///
    /// # Errors
    /// [`Error::Input`] names line, key, value found and what is valid.
    pub fn parse(
        origin: &Origin,
        text: &str,
        overrides: &[String],
        warnings: &mut Warnings,
    ) -> Result<DomainConfig> {
        let mut settings = Vec::new();
        for setting in cfg::parse(origin, text)? {
            cfg::apply(&mut settings, setting, warnings)?;
        }
        for text in overrides {
            for setting in cfg::parse(&Origin::setting(text), text)? {
                // To replace what the file says is what they are for.
                cfg::apply(&mut settings, setting, &mut Warnings::default())?;
            }
        }
        interpret(origin, settings, warnings)
    }
}

fn interpret(origin: &Origin, settings: Vec<Setting>, warnings: &mut Warnings) -> Result<DomainConfig> {
    let mut name = None;
    let mut disks = Vec::new();
    let mut vifs = Vec::new();
    let mut uid = None;
    let mut instead_of_name = None;
    for Setting { key, origin: here, value, .. } in settings {
        match key.as_str() {
            "name" => name = Some(single(here, &key, value, "a name")?),
            "uid" => uid = Some(single(here, &key, value, "a user's number")?),
            "disk" => disks = devices(&here, &key, value, |here, text| DeviceDisk::parse(here, &[text]))?,
            "vif" => {
                vifs =
                    devices(&here, &key, value, |here, text| DeviceNic::parse_in_cfg(here, text, warnings))?;
                for (index, vif) in vifs.iter_mut().enumerate() {
                    vif.value.devid.get_or_insert(index as u32);
                }
            }
            key if known_keys::is_of_machines(key) => warnings.of_process(&here, key),
            key => {
                let meant = known_keys::meant(key);
                if meant == Some("name") {
                    instead_of_name = Some(format!("; {here} sets {key}, did you mean name?"));
                }
                warnings.unknown(&here, key, meant);
            }
        }
    }
    let name = name.ok_or_else(|| {
        origin.missing("name", format!("the guest's name{}", instead_of_name.unwrap_or_default()))
    })?;
    Ok(DomainConfig { origin: origin.clone(), create_info: CreateInfo { name }, disks, vifs, uid })
}

fn single(origin: Origin, key: &str, value: Value, expected: &str) -> Result<Placed<String>> {
    match value {
        Value::Single(value) => Ok(Placed { origin, value }),
        Value::List(_) => Err(origin.invalid(key, "a list", expected)),
    }
}

/// Parses each item of a list with `parse`.
fn devices<T>(
    origin: &Origin,
    key: &str,
    value: Value,
    mut parse: impl FnMut(&Origin, &str) -> Result<T>,
) -> Result<Vec<Placed<T>>> {
    let Value::List(items) = value else {
        return Err(origin.invalid(key, "one value", "a list: [ '...', '...' ]"));
    };
    let parsed = |Item { origin, value }: Item| match value {
        Value::Single(text) => parse(&origin, &text).map(|value| Placed { origin, value }),
        Value::List(_) => Err(origin.invalid(key, "a list in the list", "a string in quotes")),
    };
    items.into_iter().map(parsed).collect()
}
