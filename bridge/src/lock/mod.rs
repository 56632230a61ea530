//! Which frames a port may send by their addresses: those of the Ethernet header, and under [`Lock::Ip`] those inside ARP, IPv4, IPv6
//! and neighbour discovery too.
//!
//! Everything is read from a frame's private head. What cannot be read there is dropped: a receiver might read it otherwise.

mod addresses;
mod arp;
mod ipv4;
mod ipv6;
mod ndp;
mod owner;

use std::{fmt, str::FromStr};

use crate::{DropReason, Frame, fdb::Mac, headers::be16};

pub use addresses::{Addresses, InvalidAddress};

/// Which frames a port may send by their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Any.
    #[default]
    Off,
    /// Those from the port's own address alone. No frame for a station that is not known is sent to the port either, as its
    /// own is known.
    Mac,
    /// Of those only ARP, IPv4 and IPv6 from the port's IP addresses, and none of a DHCP server or a router.
    Ip,
    /// None, and none is sent to the port.
    Disabled,
}

impl Lock {
    pub(crate) const ALL: [Lock; 4] = [Lock::Off, Lock::Mac, Lock::Ip, Lock::Disabled];
    /// What [`Lock::from_str`] reads, in words.
    pub const EXPECTED: &'static str = "off, mac, ip or disabled";

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Lock::Off => "off",
            Lock::Mac => "mac",
            Lock::Ip => "ip",
            Lock::Disabled => "disabled",
        }
    }

    /// Whether it needs the port's address.
    pub fn needs_address(self) -> bool {
        matches!(self, Lock::Mac | Lock::Ip)
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no lock's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", Lock::EXPECTED)]
pub struct UnknownLock;

impl FromStr for Lock {
    type Err = UnknownLock;

    fn from_str(text: &str) -> Result<Lock, UnknownLock> {
        Lock::ALL.into_iter().find(|lock| lock.name() == text).ok_or(UnknownLock)
    }
}

/// Bytes of an Ethernet header, and of a VLAN tag in it.
const ETHERNET: usize = 14;
const TAG: usize = 4;

/// A packet behind the Ethernet header and at most one VLAN tag, as far as it can be read.
#[derive(Clone, Copy)]
struct Packet<'a> {
    /// Its start: what the frame's private head has of it.
    bytes: &'a [u8],
    /// Bytes of the whole packet, with what pads the frame.
    len: usize,
    /// It is to be segmented, so that its length fields may say nothing.
    is_gso: bool,
}

/// Checks a frame from the port with the address `mac`, which is its source, by the rules of [`Lock::Ip`].
///
/// # Errors
/// The reason for which it is dropped.
pub(crate) fn check(frame: &Frame, mac: Mac, allowed: &Addresses) -> Result<(), DropReason> {
    let head = frame.head();
    let outer = be16(head, 12).ok_or(DropReason::Runt)?;
    let (kind, start) = match outer {
        0x8100 | 0x88a8 => (be16(head, 16).ok_or(DropReason::LockHeaders)?, ETHERNET + TAG),
        kind => (kind, ETHERNET),
    };
    let bytes = head.get(start..).ok_or(DropReason::LockHeaders)?;
    let packet =
        Packet { bytes, len: frame.len().saturating_sub(start), is_gso: frame.offload().gso.is_some() };
    match kind {
        0x0806 => arp::check(packet, mac, allowed),
        0x0800 => ipv4::check(packet, allowed),
        0x86dd => ipv6::check(packet, mac, allowed),
        _ => Err(DropReason::LockType),
    }
}

#[cfg(test)]
mod tests;
