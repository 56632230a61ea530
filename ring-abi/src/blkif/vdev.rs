//! Virtual device numbers: `xvda1` as a number, and back.
//!
//! Source: xen-vbd-interface(7). A number is what names a vbd in the store; the guest makes of it what it likes.

use core::fmt;

/// A vbd's number, and with it the name that toolstacks give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vdev(u32);

/// Most disks that an extended number holds: 20 bits.
const EXTENDED_DISKS: u32 = 1 << 20;
/// Most partitions that an extended number holds: 8 bits.
const EXTENDED_PARTITIONS: u32 = 1 << 8;
const EXTENDED: u32 = 1 << 28;

impl Vdev {
    /// The device with this number.
    pub const fn from_number(number: u32) -> Vdev {
        Vdev(number)
    }

    /// The number: what stands in `virtual-device`.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// A disk, or (from 1 on) a partition of it, in the `xvd` numbering; `None` beyond what numbers hold.
    pub const fn xvd(disk: u32, partition: u32) -> Option<Vdev> {
        if disk < 16 && partition < 16 {
            Some(Vdev(202 << 8 | disk << 4 | partition))
        } else if disk < EXTENDED_DISKS && partition < EXTENDED_PARTITIONS {
            Some(Vdev(EXTENDED | disk << 8 | partition))
        } else {
            None
        }
    }

    const fn sd(disk: u32, partition: u32) -> Option<Vdev> {
        if disk < 16 && partition < 16 { Some(Vdev(8 << 8 | disk << 4 | partition)) } else { None }
    }

    const fn hd(disk: u32, partition: u32) -> Option<Vdev> {
        match (disk, partition) {
            (0..=1, 0..=63) => Some(Vdev(3 << 8 | disk << 6 | partition)),
            (2..=3, 0..=63) => Some(Vdev(22 << 8 | (disk - 2) << 6 | partition)),
            _ => None,
        }
    }

    /// The device of a name: `xvda`, `xvda1`, `sdb`, `hdc2`, `d0p1`, or a number in decimal, `0x` hexadecimal or
    /// (with a leading 0) octal.
    pub fn parse(text: &str) -> Option<Vdev> {
        if let Some(rest) = text.strip_prefix("xvd") {
            return lettered(rest, Vdev::xvd);
        }
        if let Some(rest) = text.strip_prefix("sd") {
            return lettered(rest, Vdev::sd);
        }
        if let Some(rest) = text.strip_prefix("hd") {
            return lettered(rest, Vdev::hd);
        }
        if let Some((disk, partition)) = text.strip_prefix('d').and_then(|rest| rest.split_once('p')) {
            return Vdev::xvd(decimal(disk)?, decimal(partition)?);
        }
        number(text).map(Vdev)
    }
}

/// `a1` of `xvda1`: letters count a..z, aa, ab, ...
fn lettered(text: &str, number: fn(u32, u32) -> Option<Vdev>) -> Option<Vdev> {
    let split = text.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(text.len());
    let (letters, digits) = text.split_at(split);
    let mut disk = 0_u32;
    for letter in letters.bytes() {
        disk = disk.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    let partition = match digits {
        "" => 0,
        _ if digits.starts_with('0') => return None,
        _ => decimal(digits)?,
    };
    number(disk.checked_sub(1)?, partition)
}

fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (text, 10),
    };
    // `from_str_radix` would take a sign.
    digits.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| u32::from_str_radix(digits, radix).ok())?
}

/// The name, as Linux guests spell it; a number in no known scheme is itself.
impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, disk, partition) = match (self.0 >> 28, self.0 >> 8) {
            (1, _) => ("xvd", (self.0 >> 8) & (EXTENDED_DISKS - 1), self.0 & 0xff),
            (0, 202) => ("xvd", self.0 >> 4 & 15, self.0 & 15),
            (0, 8) => ("sd", self.0 >> 4 & 15, self.0 & 15),
            (0, 3) if self.0 & 0x80 == 0 => ("hd", self.0 >> 6 & 1, self.0 & 63),
            (0, 22) if self.0 & 0x80 == 0 => ("hd", 2 + (self.0 >> 6 & 1), self.0 & 63),
            _ => return self.0.fmt(f),
        };
        f.write_str(prefix)?;
        letters(f, disk)?;
        if partition == 0 { Ok(()) } else { partition.fmt(f) }
    }
}

/// 0 is a, 25 is z, 26 is aa.
fn letters(f: &mut fmt::Formatter<'_>, disk: u32) -> fmt::Result {
    if disk >= 26 {
        letters(f, disk / 26 - 1)?;
    }
    fmt::Write::write_char(f, char::from(b'a' + (disk % 26) as u8))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn vdev_names_have_the_numbers_of_xen() {
        let cases = [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("sda", 2048),
            ("sdb2", 2066),
            ("hda", 768),
            ("hdb1", 833),
            ("hdc", 5632),
            ("hdd63", 5759),
        ];
        for (name, number) in cases {
            assert_eq!(Vdev::parse(name).map(Vdev::number), Some(number), "{name}");
            assert_eq!(Vdev::from_number(number).to_string(), name);
        }
        for (text, number) in [("d0p1", 51713), ("d536p37", 1 << 28 | 536 << 8 | 37), ("51712", 51712)] {
            assert_eq!(Vdev::parse(text).map(Vdev::number), Some(number), "{text}");
        }
        assert_eq!(Vdev::parse("0xca00"), Vdev::parse("xvda"));
        assert_eq!(Vdev::parse("0145000"), Vdev::parse("xvda"));
        assert_eq!(Vdev::from_number(5).to_string(), "5");
    }

    #[test]
    fn name_without_a_number_is_refused() {
        let bad = [
            "",
            "xvd",
            "xvda01",
            "xvdA",
            "xvda256",
            "xvd1",
            "sdq",
            "sda16",
            "hde",
            "hda64",
            "d0",
            "dp",
            "d-1p1",
            "xvda+1",
            "+5",
            "-1",
            "0x",
            "4294967296",
            "xvdzzzzzzzzzz",
            "floppy",
        ];
        for text in bad {
            assert_eq!(Vdev::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_extended_name_reads_back() {
        for disk in [16, 25, 26, 701, 702, 18277, 18278, EXTENDED_DISKS - 1] {
            for partition in [0, 1, 255] {
                let vdev = Vdev::xvd(disk, partition).unwrap();
                assert_eq!(Vdev::parse(&vdev.to_string()), Some(vdev));
            }
        }
        assert_eq!(Vdev::xvd(EXTENDED_DISKS, 0), None);
    }
}
