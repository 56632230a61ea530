//! A number of bytes, as an option says it and as it is shown.

use std::fmt;
use std::str::FromStr;

/// What an image may have at most: half of what a file's offset can say.
const MAX: u64 = 1 << 62;

const EXPECTED: &str = "expected bytes in multiples of 512, up to 4E, such as 1073741824, 512M, 20G or 1.5T";

/// A number of bytes, a multiple of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    /// Units are powers of 1024, as in QEMU's tools: K, M, G, T, P, E.
    fn from_str(text: &str) -> Result<Size, String> {
        let unit = text.chars().last().filter(char::is_ascii_alphabetic);
        let number = unit.map_or(text, |unit| &text[..text.len() - unit.len_utf8()]);
        let power = match unit.map(|unit| unit.to_ascii_uppercase()) {
            None => Some(0),
            Some(unit) => "KMGTPE".find(unit).map(|at| at as u32 + 1),
        };
        let bytes = power.and_then(|power| scaled(number, 1024u64.pow(power)));
        let bytes = bytes.filter(|bytes| (1..=MAX).contains(bytes) && bytes.is_multiple_of(512));
        bytes.map(Size).ok_or_else(|| EXPECTED.to_owned())
    }
}

/// A decimal number times a unit, if that is whole.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || whole.is_empty() || part.len() > 6 {
        return None;
    }
    let denominator = 10u64.pow(part.len() as u32);
    let numerator = u128::from(format!("{whole}{part}").parse::<u64>().ok()?) * u128::from(unit);
    let is_whole = numerator.is_multiple_of(denominator.into());
    u64::try_from(numerator / u128::from(denominator)).ok().filter(|_| is_whole)
}

/// A number of bytes as QEMU's tools print it: `3.25 MiB`.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let power = (0..units.len() - 1).find(|power| self.0 >> (10 * power) < 1000);
        let power = power.unwrap_or(units.len() - 1);
        let value = self.0 as f64 / 1024f64.powi(power as i32);
        // Three digits that count, as C's %.3g has them.
        let decimals = if value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        let digits = format!("{value:.decimals$}");
        let digits = if decimals > 0 { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
        write!(f, "{digits} {}", units[power])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_a_number_of_sectors_in_units_of_1024() {
        for (text, bytes) in
            [("512", 512), ("1k", 1024), ("2M", 2 << 20), ("1.5G", 3 << 29), ("4E", 1 << 62), ("0.5K", 512)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "0",
            "1000",
            "x",
            "1X",
            "-1K",
            "5E",
            "0.1K",
            "1.K2",
            "M",
            "+512",
            "18446744073709551616",
            "1é",
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.starts_with("expected bytes in multiples of 512"), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1 << 20, "1 MiB"),
            (3411968, "3.25 MiB"),
            (20 << 20, "20 MiB"),
            (110_000_000, "105 MiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
