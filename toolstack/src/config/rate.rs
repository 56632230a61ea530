//! A vif's rate as xl-network-configuration(5) writes it: `10Mb/s`, `250KB/s`, `1MB/s@20ms`.

use std::fmt;
use std::str::FromStr;

/// So many bytes in every interval: what the store's `rate` key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes in an interval.
    pub bytes: u64,
    /// The interval, in microseconds.
    pub interval: u32,
}

/// xl's own default, in microseconds.
const INTERVAL: u32 = 50_000;

/// The text is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotARate;

/// What should have stood there.
pub const EXPECTED: &str = "a rate such as 10Mb/s, 250KB/s or 1MB/s@20ms";

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Rate, NotARate> {
        let (speed, interval) = match text.split_once('@') {
            Some((speed, interval)) => (speed, micros(interval)?),
            None => (text, INTERVAL),
        };
        let per_second = bytes_per_second(speed)?;
        let bytes = u128::from(per_second) * u128::from(interval) / 1_000_000;
        match u64::try_from(bytes) {
            Ok(bytes @ 1..) => Ok(Rate { bytes, interval }),
            _ => Err(NotARate),
        }
    }
}

/// `<number>[GMK](B|b)/s`; suffixes are powers of ten, and `b` is bits.
fn bytes_per_second(text: &str) -> Result<u64, NotARate> {
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
        _ => Err(NotARate),
    }
}

/// `<number>[us|ms|s]`; a bare number is seconds, as in xl.
fn micros(text: &str) -> Result<u32, NotARate> {
    let (digits, unit) = number(text)?;
    let factor = match unit {
        "us" | "u" => 1,
        "ms" | "m" => 1_000,
        "s" | "" => 1_000_000,
        _ => return Err(NotARate),
    };
    digits.checked_mul(factor).ok_or(NotARate)
}

/// A number from 1 on, and what follows it.
fn number(text: &str) -> Result<(u32, &str), NotARate> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text[..end].parse() {
        Ok(number @ 1..) => Ok((number, &text[end..])),
        _ => Err(NotARate),
    }
}

/// As it stands in the store: bytes, a comma, microseconds.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.bytes, self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_examples() {
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
    fn nonsense_is_refused() {
        for bad in ["", "10", "0MB/s", "10Mb", "MB/s", "1TB/s", "1MB/s@", "1MB/s@0ms", "1MB/s@9h", "7b/s@1us"]
        {
            assert_eq!(bad.parse::<Rate>(), Err(NotARate), "{bad}");
        }
        assert_eq!("99999999999GB/s".parse::<Rate>(), Err(NotARate));
        assert_eq!("1B/s@4294967295s".parse::<Rate>(), Err(NotARate));
    }
}
