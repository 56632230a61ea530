//! Ethernet addresses as the key [`super::key::MAC`] holds them: `00:16:3e:01:02:03`.

use core::fmt;
use core::str::FromStr;

/// An Ethernet address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// An address in the range assigned to Xen, 00:16:3e, as libxl makes them of three random bytes.
    pub const fn xen(random: [u8; 3]) -> Self {
        let [a, b, c] = random;
        Self([0x00, 0x16, 0x3e, a & 0x7f, b, c])
    }

    /// Whether one interface can have this address: it is neither a group's (IEEE 802.3, 3.2.3) nor all zero. Linux's
    /// `is_valid_ether_addr`.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// The text is not six pairs of hexadecimal digits with colons between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAMac;

impl fmt::Display for NotAMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address (six bytes such as 00:16:3e:01:02:03)")
    }
}

impl core::error::Error for NotAMac {}

impl FromStr for Mac {
    type Err = NotAMac;

    /// Takes digits of either case, and no white space around the address.
    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            // `from_str_radix` would take a sign.
            let group = groups.next().filter(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(group.ok_or(NotAMac)?, 16).map_err(|_| NotAMac)?;
        }
        if groups.next().is_none() { Ok(Self(bytes)) } else { Err(NotAMac) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::string::ToString;

    #[test]
    fn parse_of_six_pairs_gives_the_bytes_and_display_gives_lower_case() {
        let mac: Mac = "00:16:3E:01:02:fF".parse().unwrap();
        assert_eq!(mac, Mac([0, 0x16, 0x3e, 1, 2, 0xff]));
        assert_eq!(mac.to_string(), "00:16:3e:01:02:ff");
    }

    #[test]
    fn parse_of_anything_else_fails() {
        let bad = ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "0:16:3e:01:02:03", "zz:16:3e:01:02:03"];
        let signs_and_space = ["+0:16:3e:01:02:03", " 00:16:3e:01:02:03", "00:16:3e:01:02:03\n"];
        for text in bad.into_iter().chain(signs_and_space) {
            assert_eq!(text.parse::<Mac>(), Err(NotAMac), "{text}");
        }
    }

    #[test]
    fn groups_and_zero_are_not_unicast() {
        assert!(Mac::xen([0xff; 3]).is_unicast());
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert!(!Mac(mac).is_unicast(), "{}", Mac(mac));
        }
    }
}
