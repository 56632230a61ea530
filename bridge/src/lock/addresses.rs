//! The IP addresses that a port may send from, single ones and prefixes.

use std::{fmt, str::FromStr, sync::Arc};

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of one version that have the same first bits; a single one has all in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    V4 { address: u32, mask: u32 },
    V6 { address: u128, mask: u128 },
}

/// IP addresses and prefixes. There are none by default.
///
/// ```
/// let addresses: bridge::Addresses = "10.0.0.5 2001:db8:1::/64".parse().unwrap();
/// assert_eq!(addresses.to_string(), "10.0.0.5 2001:db8:1::/64");
/// let of_an_interface: bridge::Addresses = "10.0.0.5/24".parse().unwrap();
/// assert_eq!(of_an_interface.to_string(), "10.0.0.5");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Arc<[Prefix]>);

impl Default for Addresses {
    fn default() -> Addresses {
        Addresses(Arc::new([]))
    }
}

/// A text that is not the addresses of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found:?}, expected {expected}")]
pub struct InvalidAddress {
    /// The word.
    pub found: String,
    /// What would be valid there.
    pub expected: String,
}

impl Addresses {
    /// What [`Addresses::from_str`] reads, in words.
    pub const EXPECTED: &'static str =
        "addresses or prefixes such as 10.0.0.5 or 2001:db8::/64, with blanks between them";

    /// Most of them: the rules look at each for every frame.
    pub const MAX: usize = 64;

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are no prefixes of several.
    pub(crate) fn single(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let is_single = |prefix: &&Prefix| match prefix {
            Prefix::V4 { mask, .. } => *mask == u32::MAX,
            Prefix::V6 { mask, .. } => *mask == u128::MAX,
        };
        self.0.iter().filter(is_single).map(Prefix::address)
    }

    pub(super) fn has_v4(&self, address: [u8; 4]) -> bool {
        let found = u32::from_be_bytes(address);
        self.0.iter().any(|prefix| matches!(prefix, Prefix::V4 { address, mask } if found & mask == *address))
    }

    pub(super) fn has_v6(&self, address: [u8; 16]) -> bool {
        let found = u128::from_be_bytes(address);
        self.0.iter().any(|prefix| matches!(prefix, Prefix::V6 { address, mask } if found & mask == *address))
    }
}

impl FromStr for Addresses {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Addresses, InvalidAddress> {
        let prefixes = text.split_ascii_whitespace().map(prefix).collect::<Result<Vec<_>, _>>()?;
        if prefixes.len() > Addresses::MAX {
            let found = format!("{} of them", prefixes.len());
            return Err(InvalidAddress { found, expected: format!("at most {}", Addresses::MAX) });
        }
        Ok(Addresses(prefixes.into()))
    }
}

fn prefix(word: &str) -> Result<Prefix, InvalidAddress> {
    let invalid = |expected: String| InvalidAddress { found: word.to_owned(), expected };
    let (address, bits) = match word.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (word, None),
    };
    let address: IpAddr = address.parse().map_err(|_| invalid(Addresses::EXPECTED.to_owned()))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits.map(|bits| (bits.bytes().all(|b| b.is_ascii_digit()), bits.parse::<u32>())) {
        None => most,
        Some((true, Ok(bits))) if bits <= most => bits,
        Some(_) => return Err(invalid(format!("a prefix length from 0 to {most} behind the '/'"))),
    };
    // An address with other bits behind its prefix is one address and the length of its network, as of ip-address(8).
    Ok(match address {
        IpAddr::V4(address) => {
            let address = u32::from(address);
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Prefix::V4 { address, mask: if address & !mask == 0 { mask } else { u32::MAX } }
        }
        IpAddr::V6(address) => {
            let address = u128::from(address);
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Prefix::V6 { address, mask: if address & !mask == 0 { mask } else { u128::MAX } }
        }
    })
}

impl Prefix {
    fn address(&self) -> IpAddr {
        match self {
            Prefix::V4 { address, .. } => Ipv4Addr::from(*address).into(),
            Prefix::V6 { address, .. } => Ipv6Addr::from(*address).into(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address())?;
        match self {
            Prefix::V4 { mask, .. } if *mask != u32::MAX => write!(f, "/{}", mask.count_ones()),
            Prefix::V6 { mask, .. } if *mask != u128::MAX => write!(f, "/{}", mask.count_ones()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, prefix) in self.0.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            write!(f, "{blank}{prefix}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_prefixes_are_read_and_shown() {
        let text = "10.0.0.5 10.1.0.0/16 fe80::1 2001:db8::/32 0.0.0.0/0 ::/0";
        assert_eq!(text.parse::<Addresses>().unwrap().to_string(), text);
        assert!("".parse::<Addresses>().unwrap().is_empty());
        assert_eq!(" 10.0.0.5/32 ::1/128 ".parse::<Addresses>().unwrap().to_string(), "10.0.0.5 ::1");
        assert_eq!("10.0.0.5/24 fd00::1/64".parse::<Addresses>().unwrap().to_string(), "10.0.0.5 fd00::1");
        let some: Addresses = "10.1.0.0/16 2001:db8::/32".parse().unwrap();
        assert!(some.has_v4([10, 1, 255, 1]) && !some.has_v4([10, 2, 0, 0]));
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        assert!(some.has_v6(v6("2001:db8:ffff::1")) && !some.has_v6(v6("2001:db9::")));
        // An address of one version is none of the other.
        let all: Addresses = "0.0.0.0/0".parse().unwrap();
        assert!(all.has_v4([1, 2, 3, 4]) && !all.has_v6([0; 16]));
    }

    #[test]
    fn wrong_mask_or_address_is_named_with_what_is_expected() {
        for (text, expected) in [
            ("10.0.0.5/33", "found \"10.0.0.5/33\", expected a prefix length from 0 to 32 behind the '/'"),
            ("10.0.0.0/", "expected a prefix length from 0 to 32"),
            ("10.0.0.0/+8", "expected a prefix length"),
            ("::/129", "expected a prefix length from 0 to 128"),
            ("10.0.0.0/255.0.0.0", "expected a prefix length"),
            ("10.0.0", "expected addresses or prefixes such as 10.0.0.5"),
            ("10.0.0.1;10.0.0.2", "expected addresses or prefixes"),
        ] {
            let error = text.parse::<Addresses>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = "10.0.0.1 ".repeat(Addresses::MAX + 1);
        assert_eq!(
            many.parse::<Addresses>().unwrap_err().to_string(),
            "found \"65 of them\", expected at most 64"
        );
    }
}
