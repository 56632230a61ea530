//! What a vbd negotiates: the backend's keys, and the frontend's as a value. Does no I/O.

use std::collections::BTreeSet;

use ring_abi::blkif::{MAX_INDIRECT_PAGES, SEGMENTS_PER_INDIRECT_PAGE, info, key};
use ring_abi::ring::MAX_PAGES;
use ring_abi::{EventPort, GrantRef};
use xenbus::{KeyError, Keys};

use crate::engine::DiskInfo;

/// Value of the key `max-ring-page-order`: rings of up to 16 pages.
pub const MAX_RING_PAGE_ORDER: u32 = MAX_PAGES.ilog2();

/// The most queues that a backend offers.
pub const MAX_QUEUES: u32 = 8;

/// The most segments of an indirect request: those that eight pages hold, 16 MiB.
pub const MAX_INDIRECT_SEGMENTS: u16 = (MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE) as u16;

/// The frontend's keys that are read here, with `%u` for a number.
pub const FRONTEND_KEYS: [&str; 11] = [
    key::RING_REF,
    "ring-ref%u",
    "queue-%u/ring-ref",
    "queue-%u/ring-ref%u",
    "queue-%u/event-channel",
    key::RING_PAGE_ORDER,
    key::NUM_RING_PAGES,
    key::EVENT_CHANNEL,
    key::PROTOCOL,
    key::FEATURE_PERSISTENT,
    key::MULTI_QUEUE_NUM_QUEUES,
];

/// The layout of the ring's slots: the key `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`, which is the native layout on ARM too (`arm-abi`), and the default (BLKIF_PROTOCOL_DEFAULT of Linux's backend).
    X86_64,
    /// `x86_32-abi`.
    X86_32,
}

/// A connection's parameters, as the frontend published them.
///
/// ```
/// use blkback::handshake::{Abi, Negotiated};
/// use ring_abi::GrantRef;
/// use xenbus::Keys;
///
/// let own = Keys::new("/local/domain/0/backend/vbd/1/51712").with("feature-persistent", 0);
/// let other = Keys::new("/local/domain/1/device/vbd/51712").with("ring-ref", 8).with("event-channel", 3);
/// let negotiated = Negotiated::from_keys(&own, &other)?;
/// assert_eq!((negotiated.abi, &negotiated.queues[0].refs), (Abi::X86_64, &vec![GrantRef(8)]));
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Layout of the ring's slots.
    pub abi: Abi,
    /// The rings, one or more; all have equally many pages.
    pub queues: Vec<QueueInfo>,
    /// Both ends use persistent grants: the same pages again and again, all writable (`feature-persistent`).
    pub persistent: bool,
    /// The most segments of an indirect request, as the backend has offered; 0 where it has offered none.
    pub indirect_segments: u16,
    /// `detect-zeroes` is `unmap`: writes of zeroes become holes.
    pub detect_zeroes: bool,
}

impl Negotiated {
    /// Reads the frontend's keys `other`, and of the backend's `own` what it advertised.
    ///
    /// # Errors
    /// A key is missing or malformed, or asks for more than the backend advertised.
    pub fn from_keys(own: &Keys, other: &Keys) -> Result<Negotiated, KeyError> {
        let protocol = other.get(key::PROTOCOL).map(str::trim_ascii);
        let Some(abi) = abi(protocol, key::PROTOCOL_NATIVE) else {
            return Err(other.error(key::PROTOCOL, "x86_64-abi or x86_32-abi"));
        };
        let max_queues = own.or(key::MULTI_QUEUE_MAX_QUEUES, 1u32)?.clamp(1, MAX_QUEUES);
        let count = other.or(key::MULTI_QUEUE_NUM_QUEUES, 1u32)?;
        if count == 0 || count > max_queues {
            let expected = "1 to what multi-queue-max-queues of the backend says";
            return Err(other.error(key::MULTI_QUEUE_NUM_QUEUES, expected));
        }
        let order = ring_page_order(other)?;
        // With a single queue there is no directory of queues, as in Linux's ends.
        let queues = match count {
            1 => vec![QueueInfo::from_keys(other, order)?],
            _ => (0..count)
                .map(|queue| QueueInfo::from_keys(&other.below(&format!("queue-{queue}")), order))
                .collect::<Result<_, _>>()?,
        };
        check_refs(&queues, other)?;
        let persistent = other.flag(key::FEATURE_PERSISTENT)? && own.flag(key::FEATURE_PERSISTENT)?;
        let indirect = own.or(key::FEATURE_MAX_INDIRECT_SEGMENTS, 0u32)?;
        let indirect_segments = indirect.min(MAX_INDIRECT_SEGMENTS.into()) as u16;
        let detect_zeroes = match own.get(key::DETECT_ZEROES).map(str::trim_ascii) {
            None | Some("off") => false,
            Some("unmap") => true,
            Some(_) => return Err(own.error(key::DETECT_ZEROES, "off or unmap")),
        };
        Ok(Negotiated { abi, queues, persistent, indirect_segments, detect_zeroes })
    }

    /// What distinguishes a queue's ring from all other rings of the device, in words.
    pub fn describe(&self, queue: usize) -> String {
        let QueueInfo { refs, port } = &self.queues[queue];
        let refs: Vec<_> = refs.iter().map(|gref| gref.0).collect();
        let ring = format!("{:?} ring of grants {refs:?}, event channel {port}", self.abi);
        match self.queues.len() {
            // As programs wrote it that knew of one queue only.
            1 => ring,
            queues => format!("{ring}, queue {queue} of {queues}"),
        }
    }
}

/// One ring of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Grants of the ring's pages, 1 to 16, a power of two of them.
    pub refs: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: EventPort,
}

impl QueueInfo {
    /// Reads the keys of a queue whose ring has `1 << order` pages.
    fn from_keys(keys: &Keys, order: u32) -> Result<QueueInfo, KeyError> {
        let port = EventPort(keys.need(key::EVENT_CHANNEL)?);
        // A frontend with a ring of one page may write either key, and may have left the other one from an earlier ring.
        if order == 0 && (keys.get(key::RING_REF).is_some() || keys.get(&ring_ref(0)).is_none()) {
            return Ok(QueueInfo { refs: vec![GrantRef(keys.need(key::RING_REF)?)], port });
        }
        let refs = (0..1u32 << order)
            .map(|page| Ok(GrantRef(keys.need(&ring_ref(page))?)))
            .collect::<Result<_, _>>()?;
        Ok(QueueInfo { refs, port })
    }
}

/// Checks that no page is granted for two rings, which would overwrite each other.
fn check_refs(queues: &[QueueInfo], keys: &Keys) -> Result<(), KeyError> {
    let mut seen = BTreeSet::new();
    for (number, queue) in queues.iter().enumerate().filter(|_| queues.len() > 1) {
        for (page, gref) in queue.refs.iter().enumerate() {
            if !seen.insert(gref.0) {
                let keys = keys.below(&format!("queue-{number}"));
                let one = keys.get(key::RING_REF).is_some() && queue.refs.len() == 1;
                let name = if one { key::RING_REF.to_owned() } else { ring_ref(page as u32) };
                return Err(keys.error(&name, "a page that is granted for no other ring"));
            }
        }
    }
    Ok(())
}

/// The size of the frontend's rings, as the binary logarithm of their pages.
fn ring_page_order(keys: &Keys) -> Result<u32, KeyError> {
    match keys.opt::<u32>(key::RING_PAGE_ORDER)? {
        Some(order) if order > MAX_RING_PAGE_ORDER => {
            Err(keys.error(key::RING_PAGE_ORDER, "a number from 0 to 4, as max-ring-page-order says"))
        }
        Some(order) => Ok(order),
        // `num-ring-pages` is the older key, in pages.
        None => match keys.or(key::NUM_RING_PAGES, 1u32)? {
            pages if pages.is_power_of_two() && pages <= MAX_PAGES as u32 => Ok(pages.ilog2()),
            _ => Err(keys.error(key::NUM_RING_PAGES, "1, 2, 4, 8 or 16")),
        },
    }
}

/// The key of a page of a ring of several pages.
fn ring_ref(page: u32) -> String {
    format!("{}{page}", key::RING_REF)
}

/// The key `info`: bits of `ring_abi::blkif::info`.
fn info(disk: &DiskInfo) -> u32 {
    let read_only = if disk.read_only { info::READONLY } else { 0 };
    let cdrom = if disk.cdrom { info::CDROM | info::REMOVABLE } else { 0 };
    read_only | cdrom
}

/// The layout that a frontend names, on a machine whose native layout has the name `native`; `None` if there is none such.
fn abi(protocol: Option<&str>, native: &str) -> Option<Abi> {
    match protocol {
        None => Some(Abi::X86_64),
        Some(protocol) if protocol == native => Some(Abi::X86_64),
        Some(key::PROTOCOL_X86_64) => Some(Abi::X86_64),
        Some(key::PROTOCOL_X86_32) => Some(Abi::X86_32),
        Some(_) => None,
    }
}

/// What a backend offers whatever the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Persistent grants are supported.
    pub persistent: bool,
    /// The most queues, 1 to [`MAX_QUEUES`].
    pub max_queues: u32,
    /// The most segments of an indirect request, at most [`MAX_INDIRECT_SEGMENTS`]; 0 for none.
    pub max_indirect_segments: u16,
}

impl Offer {
    /// The keys that say so. A connection keeps to those that were there when it was made.
    pub fn keys(&self) -> Keys {
        Keys::default()
            .with(key::FEATURE_PERSISTENT, u8::from(self.persistent))
            .with(key::FEATURE_MAX_INDIRECT_SEGMENTS, self.max_indirect_segments)
            .with(key::MAX_RING_PAGE_ORDER, MAX_RING_PAGE_ORDER)
            .with(key::MAX_RING_PAGES, MAX_PAGES)
            .with(key::MULTI_QUEUE_MAX_QUEUES, self.max_queues)
    }
}

/// The keys that tell a frontend of the disk; they may change while it is connected.
pub fn disk_keys(disk: &DiskInfo) -> Keys {
    let flush = u8::from(disk.flush);
    let keys = Keys::default()
        .with(key::FEATURE_BARRIER, flush)
        .with(key::FEATURE_FLUSH_CACHE, flush)
        .with(key::SECTORS, disk.sectors)
        .with(key::SECTOR_SIZE, disk.sector_size)
        .with(key::PHYSICAL_SECTOR_SIZE, disk.physical_sector_size)
        .with(key::INFO, info(disk));
    let keys = match disk.discard {
        Some(limits) => keys
            .with(key::FEATURE_DISCARD, 1)
            .with(key::DISCARD_GRANULARITY, limits.granularity)
            .with(key::DISCARD_ALIGNMENT, limits.alignment),
        None => keys,
    };
    match disk.read_only {
        true => keys.with(key::MODE, "r"),
        // The toolstack's, `w` or `w!`, which the next process needs too.
        false => keys,
    }
}

#[cfg(test)]
mod tests;
