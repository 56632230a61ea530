//! How much memory the cache of base images has, as an option or a key says it.

use std::fmt;
use std::str::FromStr;

use nix::unistd::{SysconfVar, sysconf};
use serde::Deserialize;

use crate::config::size::Size;

/// What it has at most where nobody says: a gibibyte.
const MOST: u64 = 1 << 30;

/// Bytes of the cache; 0 for none.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct CacheSize(pub u64);

impl Default for CacheSize {
    /// A sixteenth of the memory, and no more than a gibibyte.
    fn default() -> CacheSize {
        let of = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let memory = of(SysconfVar::_PHYS_PAGES).zip(of(SysconfVar::PAGE_SIZE));
        CacheSize(memory.map_or(0, |(pages, bytes)| pages * bytes / 16).min(MOST))
    }
}

impl FromStr for CacheSize {
    type Err = String;

    fn from_str(text: &str) -> Result<CacheSize, String> {
        match text {
            "0" => Ok(CacheSize(0)),
            _ => text.parse().map(|Size(bytes)| CacheSize(bytes)).map_err(|_| {
                format!("found {text:?}, expected 0 or bytes in multiples of 512, such as 256M or 1G")
            }),
        }
    }
}

impl TryFrom<String> for CacheSize {
    type Error = String;

    fn try_from(text: String) -> Result<CacheSize, String> {
        text.parse()
    }
}

impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_size_is_a_size_or_0_and_is_shown_so_that_it_is_read_again() {
        for (text, bytes) in [("0", 0), ("256M", 256 << 20), ("1.5g", 3 << 29)] {
            let size: CacheSize = text.parse().unwrap();
            assert_eq!((size, size.to_string().parse()), (CacheSize(bytes), Ok(size)), "{text}");
        }
        for text in ["", "00", "1", "-1", "much"] {
            let error = text.parse::<CacheSize>().unwrap_err();
            assert_eq!(
                error,
                format!("found {text:?}, expected 0 or bytes in multiples of 512, such as 256M or 1G")
            );
        }
        assert!((1..=MOST).contains(&CacheSize::default().0));
    }
}
