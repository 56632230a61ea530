//! What a vbd negotiates: the frontend's keys, and the backend's as a value. Does no I/O.

use alloc::format;
use ring_abi::blkif::info::READONLY;
use ring_abi::blkif::key;
use ring_abi::{EventPort, GrantRef};
use xenbus::handshake::front::Manner;
use xenbus::{KeyError, Keys, XenbusState};

/// A disk's requests are kept while its backend restarts, and failed when it closes.
pub const MANNER: Manner = Manner { offers_with: XenbusState::Initialised, reopens: false };

/// Keys that belong to one connection and are removed before the next. Some are never written here: another frontend, with
/// several queues, may have had the disk before.
pub const CONNECTION_KEYS: [&str; 5] = [
    key::RING_REF,
    key::EVENT_CHANNEL,
    key::RING_PAGE_ORDER,
    key::NUM_RING_PAGES,
    key::MULTI_QUEUE_NUM_QUEUES,
];

/// The backend's keys that are read here.
pub const BACKEND_KEYS: [&str; 9] = [
    key::SECTORS,
    key::SECTOR_SIZE,
    key::PHYSICAL_SECTOR_SIZE,
    key::INFO,
    key::MODE,
    key::FEATURE_FLUSH_CACHE,
    key::FEATURE_BARRIER,
    key::MAX_RING_PAGE_ORDER,
    key::MAX_RING_PAGES,
];

/// The disk's properties and features, as the backend published them.
///
/// ```
/// use blkfront::Negotiated;
/// use xenbus::Keys;
///
/// let keys = Keys::new("/local/domain/0/backend/vbd/1/51712").with("sectors", 2048).with("info", 4);
/// let negotiated = Negotiated::from_keys(&keys)?;
/// assert!(negotiated.read_only && negotiated.sector_size == 512);
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Length in units of 512 bytes, whatever the sector size (as in every implementation in use).
    pub sectors: u64,
    /// Logical sector in bytes, a power of two from 512 to 4096: requests are aligned to it.
    pub sector_size: u32,
    /// Physical sector in bytes: requests aligned to it are fastest.
    pub physical_sector_size: u32,
    /// Writes fail.
    pub read_only: bool,
    /// Flushes are supported.
    pub flush: bool,
    /// Barriers are supported.
    pub barrier: bool,
}

impl Negotiated {
    /// Reads the backend's keys `other`.
    ///
    /// # Errors
    /// `sectors` is missing, or a key is malformed or out of range.
    pub fn from_keys(other: &Keys) -> Result<Negotiated, KeyError> {
        let sector_size = other.or(key::SECTOR_SIZE, 512u32)?;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(other.error(key::SECTOR_SIZE, "a power of two from 512 to 4096"));
        }
        let sectors = other.need(key::SECTORS)?;
        if sectors > u64::MAX / 512 {
            return Err(other.error(key::SECTORS, "a length in units of 512 bytes"));
        }
        Ok(Negotiated {
            sectors,
            sector_size,
            physical_sector_size: other.or(key::PHYSICAL_SECTOR_SIZE, sector_size)?,
            read_only: other.or(key::INFO, 0u32)? & READONLY != 0 || other.get(key::MODE) == Some("r"),
            flush: other.flag(key::FEATURE_FLUSH_CACHE)?,
            barrier: other.flag(key::FEATURE_BARRIER)?,
        })
    }
}

/// The ring's size as the binary logarithm of its pages: the backend's maximum, but at most `requested`.
///
/// # Errors
/// A key is malformed.
pub fn ring_page_order(keys: &Keys, requested: u32) -> Result<u32, KeyError> {
    let max = match keys.opt::<u32>(key::MAX_RING_PAGE_ORDER)? {
        Some(order) => order,
        None => keys.or(key::MAX_RING_PAGES, 1u32)?.checked_ilog2().unwrap_or(0),
    };
    Ok(max.min(requested))
}

/// The keys that the frontend publishes for a ring.
pub fn frontend_keys(refs: &[GrantRef], port: EventPort) -> Keys {
    let mut keys = Keys::default();
    match refs {
        [one] => {
            keys.set(key::RING_REF, one);
        }
        many => {
            keys.set(key::RING_PAGE_ORDER, many.len().ilog2());
            // Both keys, as Linux's frontend writes them.
            keys.set(key::NUM_RING_PAGES, many.len());
            keys.extend(
                many.iter().enumerate().map(|(page, gref)| (format!("{}{page}", key::RING_REF), gref)),
            );
        }
    }
    keys.with(key::EVENT_CHANNEL, port)
        .with(key::PROTOCOL, key::PROTOCOL_NATIVE)
        .with(key::FEATURE_PERSISTENT, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("/b").with(key::SECTORS, 2048).with(key::FEATURE_FLUSH_CACHE, 1).with(key::INFO, 4)
    }

    #[test]
    fn properties_of_a_disk_are_those_that_the_backend_publishes() {
        let negotiated = Negotiated {
            sectors: 2048,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: true,
            flush: true,
            barrier: false,
        };
        assert_eq!(Negotiated::from_keys(&keys()), Ok(negotiated));
    }

    #[test]
    fn invalid_properties_are_refused_by_name() {
        for (key, value) in [
            (key::SECTORS, "x"),
            (key::SECTORS, "18446744073709551615"),
            (key::SECTOR_SIZE, "0"),
            (key::SECTOR_SIZE, "768"),
            (key::SECTOR_SIZE, "1048576"),
            (key::INFO, "-1"),
        ] {
            let error = Negotiated::from_keys(&keys().with(key, value)).unwrap_err();
            assert!(format!("{error}").starts_with(&format!("/b/{key}: found \"{value}\"")), "{error}");
        }
    }

    #[test]
    fn ring_page_order_is_the_smaller_of_both_ends() {
        let offers = |order: &str| Keys::new("/b").with(key::MAX_RING_PAGE_ORDER, order);
        assert_eq!(ring_page_order(&offers("4"), 2), Ok(2));
        assert_eq!(ring_page_order(&offers("1"), 2), Ok(1));
        assert_eq!(ring_page_order(&Keys::new("/b"), 2), Ok(0));
        assert_eq!(ring_page_order(&Keys::new("/b").with(key::MAX_RING_PAGES, 8), 4), Ok(3));
        let two = frontend_keys(&[GrantRef(8), GrantRef(9)], EventPort(5));
        assert_eq!((two.get(key::RING_PAGE_ORDER), two.get("ring-ref1")), (Some("1"), Some("9")));
    }
}
