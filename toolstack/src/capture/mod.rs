//! Captures of a vif's frames for clients of the control socket: [`session`] is one of them, [`pcapng`] its format.

pub mod pcapng;
pub mod session;

use std::net::IpAddr;

use bridge::{CaptureHost, fdb::Mac};

pub use session::{Captures, Wanted};

/// Parses a station's address.
///
/// # Errors
/// It is neither a MAC nor an IP address.
pub fn host(text: &str) -> Result<CaptureHost, String> {
    let mac = || text.parse::<ring_abi::netif::Mac>().ok().map(|mac| CaptureHost::Mac(Mac::new(mac.0)));
    let ip = || text.parse::<IpAddr>().ok().map(CaptureHost::Ip);
    mac().or_else(ip).ok_or_else(|| format!("found {text:?}, expected a MAC or an IP address"))
}
