//! A network interface in the syntax of xl-network-configuration(5): `mac=00:16:3e:01:02:03,bridge=xenbr0,rate=1MB/s`.

use std::str::FromStr;

use ring_abi::netif::{MTU_DEFAULT, MTU_MAX, MTU_MIN, MTU_RANGE, Mac};

use super::Warnings;
use super::params::Params;
use super::rate::{self, Rate};
use crate::error::{Origin, Result};

/// A network interface to attach.
///
/// ```
/// use toolstack::config::{VifSpec, Warnings};
/// use toolstack::error::Origin;
///
/// let origin = Origin::argument("VIF");
/// let vif = VifSpec::parse(&origin, "bridge=br1,mtu=9000", &mut Warnings::default()).unwrap();
/// assert_eq!((vif.bridge.as_str(), vif.mtu, vif.mac), ("br1", 9000, None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifSpec {
    /// The interface's MAC address; `None` means that one is to be chosen.
    pub mac: Option<Mac>,
    /// The bridge that the interface is attached to.
    pub bridge: String,
    /// The interface's name in dom0, and the name of a local guest's tap; `None` means `vif<domid>.<devid>`.
    pub vifname: Option<String>,
    /// The limit on what the guest sends.
    pub rate: Option<Rate>,
    /// The largest payload of a frame, in bytes.
    pub mtu: u32,
    /// The device number in the guest; `None` means the lowest free one.
    pub devid: Option<u32>,
    /// Whether the guest's frontend is to trust the backend.
    pub trusted: bool,
}

/// The default bridge.
pub const DEFAULT_BRIDGE: &str = "xenbr0";

const NAMED: [&str; 16] = [
    "mac",
    "bridge",
    "vifname",
    "rate",
    "mtu",
    "devid",
    "ip",
    "type",
    "script",
    "backend",
    "model",
    "gatewaydev",
    "netdev",
    "vlan",
    "accel",
    "forwarddev",
];

impl VifSpec {
    /// Parses an interface; the empty text gives every default. Parameters without effect are added to `warnings`.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] names the parameter, the value found and what is valid.
    pub fn parse(origin: &Origin, text: &str, warnings: &mut Warnings) -> Result<VifSpec> {
        let mut params = Params::new(origin, "vif");
        for piece in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            parse_piece(&mut params, piece)?;
        }
        without_effect(&mut params, warnings)?;
        finish(params)
    }
}

fn parse_piece(params: &mut Params<'_>, piece: &str) -> Result<()> {
    match piece {
        "trusted" => return params.set("trusted", "1"),
        "untrusted" => return params.set("trusted", "0"),
        _ => {}
    }
    let known =
        piece.split_once('=').and_then(|(name, value)| Some((NAMED.iter().find(|n| **n == name)?, value)));
    match known {
        Some((name, value)) => params.set(name, value),
        None => {
            let expected =
                format!("one of trusted, untrusted, or KEY=VALUE with KEY one of {}", NAMED.join(", "));
            Err(params.origin().invalid("vif", piece, expected))
        }
    }
}

/// Rejects what xl supports and this program does not, and warns of what has no effect.
fn without_effect(params: &mut Params<'_>, warnings: &mut Warnings) -> Result<()> {
    match params.take("type").as_deref() {
        None | Some("vif") => {}
        Some(other) => return Err(params.invalid("type", other, "vif (there are no emulated interfaces)")),
    }
    if let Some(domain) = params.take("backend")
        && !["0", "Domain-0"].contains(&domain.as_str())
    {
        return Err(params.invalid("backend", &domain, "Domain-0 (driver domains are not supported yet)"));
    }
    params.refuse("vlan", "nothing (VLANs are not supported yet)")?;
    params.refuse("forwarddev", "nothing (COLO is not supported)")?;
    if params.is_set_to("trusted", "0") {
        warnings.no_effect(params.origin(), &params.key("trusted"), "our frontends make no difference");
    }
    let ignored = [
        ("ip", "no script filters by address"),
        ("script", "scripts are not run; dom0 puts the interface into the bridge itself"),
        ("model", "there are no emulated interfaces"),
        ("gatewaydev", "it is for the script vif-route, which is not run"),
        ("netdev", "it is for the script vif-route, which is not run"),
        ("accel", "it has had none since Xen 4.2"),
    ];
    for (name, why) in ignored {
        if params.take(name).is_some() {
            warnings.no_effect(params.origin(), &params.key(name), why);
        }
    }
    Ok(())
}

fn finish(mut params: Params<'_>) -> Result<VifSpec> {
    let mac = mac(&mut params)?;
    let mtu = mtu(&mut params)?;
    let vifname = params.take("vifname");
    if let Some(name) = vifname.as_deref().filter(|n| !is_interface_name(n)) {
        return Err(params.invalid(
            "vifname",
            name,
            "an interface name: 1 to 15 bytes without '/', ':' or blanks",
        ));
    }
    Ok(VifSpec {
        mac,
        mtu,
        vifname,
        bridge: params.take("bridge").unwrap_or_else(|| DEFAULT_BRIDGE.into()),
        rate: parse(&mut params, "rate", rate::EXPECTED)?,
        devid: parse(&mut params, "devid", "a number from 0 on")?,
        trusted: params.take("trusted").is_none_or(|t| t == "1"),
    })
}

fn mac(params: &mut Params<'_>) -> Result<Option<Mac>> {
    let Some(text) = params.take("mac") else { return Ok(None) };
    match text.parse::<Mac>() {
        Ok(mac) if mac.is_unicast() => Ok(Some(mac)),
        _ => Err(params.invalid("mac", &text, "an address of one interface such as 00:16:3e:01:02:03")),
    }
}

fn mtu(params: &mut Params<'_>) -> Result<u32> {
    let expected = format!("bytes from {MTU_RANGE}");
    let mtu = parse(params, "mtu", &expected)?.unwrap_or(MTU_DEFAULT);
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(params.invalid("mtu", &mtu.to_string(), expected));
    }
    Ok(mtu)
}

fn parse<T: FromStr>(params: &mut Params<'_>, name: &str, expected: &str) -> Result<Option<T>> {
    let Some(text) = params.take(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| params.invalid(name, &text, expected))
}

/// Whether Linux accepts this as an interface's name (`dev_valid_name`).
pub fn is_interface_name(name: &str) -> bool {
    let bad = |c: char| c.is_ascii_whitespace() || c == '/' || c == ':';
    (1..16).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

#[cfg(test)]
mod tests;
