//! A vif's rate limit in the syntax of xl-network-configuration(5): `10Mb/s`, `250KB/s`, `1MB/s@20ms`; and in packets, which xl does
//! not have, in the same: `1000p/s`, `20Kp/s@10ms`.

use std::fmt;
use std::str::FromStr;

/// A limit in bytes an interval, as the store's `rate` key holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes that may be sent in an interval; xl takes 0.
    pub bytes: u64,
    /// The interval in microseconds.
    pub interval: u32,
}

/// A limit in packets an interval, as the store's keys hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRate {
    /// Packets in an interval.
    pub packets: u64,
    /// The interval in microseconds.
    pub interval: u32,
}

/// xl's default interval in microseconds.
const DEFAULT_INTERVAL: u32 = 50_000;

/// The error that a text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRate;

/// What is valid, for error messages.
pub const EXPECTED: &str = "a rate such as 10Mb/s, 250KB/s or 1MB/s@20ms";
/// What is valid of packets, for error messages.
pub const PACKETS_EXPECTED: &str = "packets such as 1000p/s, 20Kp/s or 1000p/s@10ms";

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Rate, InvalidRate> {
        let (speed, interval) = parts(text)?;
        let per_second = bytes_per_second(speed)?;
        // xl refuses what does not fit before the division.
        let bytes = per_second.checked_mul(interval.into()).ok_or(InvalidRate)? / 1_000_000;
        Ok(Rate { bytes, interval })
    }
}

impl FromStr for PacketRate {
    type Err = InvalidRate;

    /// Of a rate of few packets the interval is that of whole ones: rounding them would change it.
    fn from_str(text: &str) -> Result<PacketRate, InvalidRate> {
        let (speed, interval) = parts(text)?;
        let (per_second, "p/s") = scaled(speed)? else { return Err(InvalidRate) };
        let wanted = u128::from(per_second) * u128::from(interval);
        let packets = ((wanted + 500_000) / 1_000_000).max(1);
        let interval = packets * 1_000_000 / u128::from(per_second);
        let interval = u32::try_from(interval).ok().filter(|interval| *interval > 0).ok_or(InvalidRate)?;
        Ok(PacketRate { packets: u64::try_from(packets).map_err(|_| InvalidRate)?, interval })
    }
}

/// The speed, and the interval in microseconds.
fn parts(text: &str) -> Result<(&str, u32), InvalidRate> {
    match text.split_once('@') {
        Some((speed, interval)) => Ok((speed, micros(interval)?)),
        None => Ok((text, DEFAULT_INTERVAL)),
    }
}

/// Parses `<number>[GMK](B|b)/s`; suffixes are powers of ten, and `b` is bits.
fn bytes_per_second(text: &str) -> Result<u64, InvalidRate> {
    let (whole, unit) = scaled(text)?;
    match unit {
        "B/s" => Ok(whole),
        "b/s" => Ok(whole / 8),
        _ => Err(InvalidRate),
    }
}

/// Parses `<number>[GMK]`, and returns the rest too.
fn scaled(text: &str) -> Result<(u64, &str), InvalidRate> {
    let (digits, unit) = number(text)?;
    let (factor, unit) = match unit.as_bytes().first() {
        Some(b'G') => (1_000_000_000, &unit[1..]),
        Some(b'M') => (1_000_000, &unit[1..]),
        Some(b'K') => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    Ok((u64::from(digits) * factor, unit))
}

/// Parses `<number>[us|ms|s]`; a number without a unit is seconds, as in xl.
fn micros(text: &str) -> Result<u32, InvalidRate> {
    let (digits, unit) = number(text)?;
    let factor = match unit {
        "us" | "u" => 1,
        "ms" | "m" => 1_000,
        "s" | "" => 1_000_000,
        _ => return Err(InvalidRate),
    };
    digits.checked_mul(factor).ok_or(InvalidRate)
}

/// Splits a number of at least 1 off the text, and returns the rest too.
fn number(text: &str) -> Result<(u32, &str), InvalidRate> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text[..end].parse() {
        Ok(number @ 1..) => Ok((number, &text[end..])),
        _ => Err(InvalidRate),
    }
}

/// The form of the store: bytes, a comma, microseconds.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.bytes, self.interval)
    }
}

/// The form of the store: packets, a comma, microseconds.
impl fmt::Display for PacketRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.packets, self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_manual_are_parsed() {
        let cases = [
            ("10Mb/s", 62_500, 50_000),
            ("250KB/s", 12_500, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("4GB/s@1s", 4_000_000_000, 1_000_000),
            ("800b/s@1", 100, 1_000_000),
        ];
        for (text, bytes, interval) in cases {
            assert_eq!(text.parse(), Ok(Rate { bytes, interval }), "{text}");
        }
        assert_eq!("1MB/s@20ms".parse::<Rate>().unwrap().to_string(), "20000,20000");
    }

    #[test]
    fn packets_are_parsed_and_few_of_them_exactly() {
        for (text, packets, interval) in [
            ("1000p/s", 50, 50_000),
            ("2Mp/s", 100_000, 50_000),
            ("20Kp/s@10ms", 200, 10_000),
            ("7p/s", 1, 142_857),
            ("33p/s", 2, 60_606),
            ("1p/s@1us", 1, 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(PacketRate { packets, interval }), "{text}");
        }
        assert_eq!("1000p/s".parse::<PacketRate>().unwrap().to_string(), "50,50000");
        for bad in ["", "1000", "0p/s", "1000P/s", "10Mb/s", "p/s", "1000p/s@", "1000p/s@9h"] {
            assert_eq!(bad.parse::<PacketRate>(), Err(InvalidRate), "{bad}");
        }
    }

    #[test]
    fn malformed_and_zero_rates_are_rejected() {
        for bad in ["", "10", "0MB/s", "10Mb", "MB/s", "1TB/s", "1MB/s@", "1MB/s@0ms", "1MB/s@9h"] {
            assert_eq!(bad.parse::<Rate>(), Err(InvalidRate), "{bad}");
        }
        assert_eq!("4296MB/s@4294s".parse::<Rate>(), Err(InvalidRate));
        assert_eq!("99999999999GB/s".parse::<Rate>(), Err(InvalidRate));
        assert_eq!("1B/s@4294967295s".parse::<Rate>(), Err(InvalidRate));
    }
}
