//! A vif's rate limit in the syntax of xl-network-configuration(5): `10Mb/s`, `250KB/s`, `1MB/s@20ms`.

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

/// xl's default interval in microseconds.
const DEFAULT_INTERVAL: u32 = 50_000;

/// The error that a text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRate;

/// What is valid, for error messages.
pub const EXPECTED: &str = "a rate such as 10Mb/s, 250KB/s or 1MB/s@20ms";

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Rate, InvalidRate> {
        let (speed, interval) = match text.split_once('@') {
            Some((speed, interval)) => (speed, micros(interval)?),
            None => (text, DEFAULT_INTERVAL),
        };
        let per_second = bytes_per_second(speed)?;
        // xl refuses what does not fit before the division.
        let bytes = per_second.checked_mul(interval.into()).ok_or(InvalidRate)? / 1_000_000;
        Ok(Rate { bytes, interval })
    }
}

/// Parses `<number>[GMK](B|b)/s`; suffixes are powers of ten, and `b` is bits.
fn bytes_per_second(text: &str) -> Result<u64, InvalidRate> {
    let (digits, unit) = number(text)?;
    let (factor, unit) = match unit.as_bytes().first() {
        Some(b'G') => (1_000_000_000, &unit[1..]),
        Some(b'M') => (1_000_000, &unit[1..]),
        Some(b'K') => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    let whole = u64::from(digits) * factor;
    match unit {
        "B/s" => Ok(whole),
        "b/s" => Ok(whole / 8),
        _ => Err(InvalidRate),
    }
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
    fn malformed_and_zero_rates_are_rejected() {
        for bad in ["", "10", "0MB/s", "10Mb", "MB/s", "1TB/s", "1MB/s@", "1MB/s@0ms", "1MB/s@9h"] {
            assert_eq!(bad.parse::<Rate>(), Err(InvalidRate), "{bad}");
        }
        assert_eq!("4296MB/s@4294s".parse::<Rate>(), Err(InvalidRate));
        assert_eq!("99999999999GB/s".parse::<Rate>(), Err(InvalidRate));
        assert_eq!("1B/s@4294967295s".parse::<Rate>(), Err(InvalidRate));
    }
}
