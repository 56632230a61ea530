//! What a vbd negotiates: the frontend's keys, and the backend's as a value. Does no I/O.

use alloc::format;
use ring_abi::blkif::info::READONLY;
use ring_abi::blkif::key;
use ring_abi::{EventPort, GrantRef};
use xenbus::handshake::front::Manner;
use xenbus::{KeyError, Keys, XenbusState};

/// A disk's requests are kept while its backend restarts, and failed when it closes.
pub const MANNER: Manner = Manner { offers_with: XenbusState::Initialised, reopens: false };

/// The most queues that this frontend uses.
pub const MAX_QUEUES: u32 = 8;

/// The most segments of an indirect request that this frontend makes.
pub const MAX_INDIRECT_SEGMENTS: u16 = 256;

/// Keys that belong to one connection and are removed before the next, with all that is below them. Some may be another frontend's.
pub const CONNECTION_KEYS: [&str; 13] = [
    key::RING_REF,
    key::EVENT_CHANNEL,
    key::RING_PAGE_ORDER,
    key::NUM_RING_PAGES,
    key::MULTI_QUEUE_NUM_QUEUES,
    "queue-0",
    "queue-1",
    "queue-2",
    "queue-3",
    "queue-4",
    "queue-5",
    "queue-6",
    "queue-7",
];

/// The backend's keys that are read here.
pub const BACKEND_KEYS: [&str; 15] = [
    key::SECTORS,
    key::SECTOR_SIZE,
    key::PHYSICAL_SECTOR_SIZE,
    key::INFO,
    key::MODE,
    key::FEATURE_FLUSH_CACHE,
    key::FEATURE_BARRIER,
    key::FEATURE_PERSISTENT,
    key::MAX_RING_PAGE_ORDER,
    key::MAX_RING_PAGES,
    key::MULTI_QUEUE_MAX_QUEUES,
    key::FEATURE_MAX_INDIRECT_SEGMENTS,
    key::FEATURE_DISCARD,
    key::DISCARD_GRANULARITY,
    key::DISCARD_ALIGNMENT,
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
    /// The most segments of an indirect request; 0 if none are supported.
    pub indirect_segments: u16,
    /// What can be discarded; `None` if discards are not supported.
    pub discard: Option<DiscardLimits>,
}

/// The extents that a disk can discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Length of an extent in bytes, not 0: of a discard that covers one in part, that part need not be freed.
    pub granularity: u32,
    /// Bytes before the first extent.
    pub alignment: u32,
}

impl DiscardLimits {
    /// Reads the backend's keys; without the optional ones each sector is an extent (note 4 of blkif.h).
    fn from_keys(other: &Keys, sector_size: u32) -> Result<Option<DiscardLimits>, KeyError> {
        if !other.flag(key::FEATURE_DISCARD)? {
            return Ok(None);
        }
        let granularity = match other.or(key::DISCARD_GRANULARITY, sector_size)? {
            0 => sector_size,
            bytes => bytes,
        };
        Ok(Some(DiscardLimits { granularity, alignment: other.or(key::DISCARD_ALIGNMENT, 0)? }))
    }
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
            indirect_segments: indirect_segments(other)?,
            discard: DiscardLimits::from_keys(other, sector_size)?,
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

/// The most segments of an indirect request that this frontend and the backend support: 256, which are 1 MiB.
///
/// # Errors
/// The key is malformed.
pub fn indirect_segments(keys: &Keys) -> Result<u16, KeyError> {
    let max = keys.or(key::FEATURE_MAX_INDIRECT_SEGMENTS, 0u32)?;
    Ok(max.min(MAX_INDIRECT_SEGMENTS.into()) as u16)
}

/// How many queues a connection has: the backend's maximum, but at most `requested` and [`MAX_QUEUES`].
///
/// # Errors
/// A key is malformed.
pub fn queue_count(keys: &Keys, requested: u32) -> Result<u32, KeyError> {
    let max = keys.or(key::MULTI_QUEUE_MAX_QUEUES, 1u32)?;
    Ok(max.min(requested).clamp(1, MAX_QUEUES))
}

/// A queue, as the backend is told of it.
#[derive(Clone, Copy, Debug)]
pub struct QueueInfo<'r> {
    /// Grants of the ring's pages, a power of two of them, as many for each queue.
    pub refs: &'r [GrantRef],
    /// Its event channel.
    pub port: EventPort,
}

/// The keys that the frontend publishes for its rings. With `persistent` grants (`feature-persistent`) it grants the pages of requests,
/// and of their indirect segments, for writing, and uses the same ones again and again, so that the backend keeps them mapped.
pub fn frontend_keys(queues: &[QueueInfo<'_>], persistent: bool) -> Keys {
    let mut keys = Keys::default();
    match queues {
        // With a single queue there is no directory of queues, as in Linux's ends.
        [one] => add_queue(&mut keys, "", one),
        several => {
            keys.set(key::MULTI_QUEUE_NUM_QUEUES, several.len());
            for (number, queue) in several.iter().enumerate() {
                add_queue(&mut keys, &format!("queue-{number}/"), queue);
            }
        }
    }
    let pages = queues.iter().map(|queue| queue.refs.len()).max().unwrap_or(1);
    if pages > 1 {
        keys.set(key::RING_PAGE_ORDER, pages.ilog2());
        // Both keys, as Linux's frontend writes them.
        keys.set(key::NUM_RING_PAGES, pages);
    }
    keys.with(key::PROTOCOL, key::PROTOCOL_NATIVE).with(key::FEATURE_PERSISTENT, u8::from(persistent))
}

/// Adds the keys of one queue below `directory`.
fn add_queue(keys: &mut Keys, directory: &str, queue: &QueueInfo<'_>) {
    match queue.refs {
        [one] => drop(keys.set(format!("{directory}{}", key::RING_REF), one)),
        many => {
            let name = |page| format!("{directory}{}{page}", key::RING_REF);
            keys.extend(many.iter().enumerate().map(|(page, gref)| (name(page), gref)));
        }
    }
    keys.set(format!("{directory}{}", key::EVENT_CHANNEL), queue.port);
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
            indirect_segments: 0,
            discard: None,
        };
        assert_eq!(Negotiated::from_keys(&keys()), Ok(negotiated));
        for (offered, used) in [(32, 32), (4096, 256), (u32::MAX, 256)] {
            let keys = keys().with(key::FEATURE_MAX_INDIRECT_SEGMENTS, offered);
            assert_eq!(Negotiated::from_keys(&keys).unwrap().indirect_segments, used);
        }
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
            (key::FEATURE_DISCARD, "yes"),
            (key::DISCARD_GRANULARITY, "4k"),
            (key::DISCARD_ALIGNMENT, "-1"),
        ] {
            let error =
                Negotiated::from_keys(&keys().with(key::FEATURE_DISCARD, 1).with(key, value)).unwrap_err();
            assert!(format!("{error}").starts_with(&format!("/b/{key}: found \"{value}\"")), "{error}");
        }
    }

    #[test]
    fn discard_has_sectors_for_extents_unless_the_backend_says_more() {
        let discard = |keys: Keys| Negotiated::from_keys(&keys).unwrap().discard;
        let offered = || keys().with(key::FEATURE_DISCARD, 1);
        assert_eq!(discard(keys().with(key::DISCARD_GRANULARITY, 4096)), None);
        assert_eq!(discard(keys().with(key::FEATURE_DISCARD, 0)), None);
        let sector_size = Negotiated::from_keys(&keys()).unwrap().sector_size;
        let of = |granularity, alignment| Some(DiscardLimits { granularity, alignment });
        assert_eq!(discard(offered()), of(sector_size, 0));
        assert_eq!(discard(offered().with(key::DISCARD_GRANULARITY, 0)), of(sector_size, 0));
        let extents = offered().with(key::DISCARD_GRANULARITY, 65536).with(key::DISCARD_ALIGNMENT, 512);
        assert_eq!(discard(extents), of(65536, 512));
    }

    #[test]
    fn ring_page_order_is_the_smaller_of_both_ends() {
        let offers = |order: &str| Keys::new("/b").with(key::MAX_RING_PAGE_ORDER, order);
        assert_eq!(ring_page_order(&offers("4"), 2), Ok(2));
        assert_eq!(ring_page_order(&offers("1"), 2), Ok(1));
        assert_eq!(ring_page_order(&Keys::new("/b"), 2), Ok(0));
        assert_eq!(ring_page_order(&Keys::new("/b").with(key::MAX_RING_PAGES, 8), 4), Ok(3));
        let two =
            frontend_keys(&[QueueInfo { refs: &[GrantRef(8), GrantRef(9)], port: EventPort(5) }], false);
        assert_eq!((two.get(key::RING_PAGE_ORDER), two.get("ring-ref1")), (Some("1"), Some("9")));
    }

    #[test]
    fn queues_are_the_fewer_of_both_ends_and_each_has_keys_of_its_own() {
        let offers = |queues: u32| Keys::new("/b").with(key::MULTI_QUEUE_MAX_QUEUES, queues);
        assert_eq!(queue_count(&offers(4), 2), Ok(2));
        assert_eq!(queue_count(&offers(2), 4), Ok(2));
        assert_eq!(queue_count(&offers(100), 100), Ok(MAX_QUEUES));
        assert_eq!((queue_count(&offers(0), 2), queue_count(&Keys::new("/b"), 2)), (Ok(1), Ok(1)));
        let refs = [GrantRef(8), GrantRef(9)];
        let queues = [
            QueueInfo { refs: &refs[..1], port: EventPort(5) },
            QueueInfo { refs: &refs[1..], port: EventPort(6) },
        ];
        let keys = frontend_keys(&queues, true);
        assert_eq!(keys.get(key::FEATURE_PERSISTENT), Some("1"));
        assert_eq!(keys.get(key::MULTI_QUEUE_NUM_QUEUES), Some("2"));
        assert_eq!((keys.get(key::RING_REF), keys.get(key::EVENT_CHANNEL)), (None, None));
        let queue = keys.below("queue-1");
        assert_eq!((queue.get(key::RING_REF), queue.get(key::EVENT_CHANNEL)), (Some("9"), Some("6")));
    }
}
