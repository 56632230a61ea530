//! What a vbd negotiates: the backend's keys, and the frontend's as a value. Does no I/O.

use ring_abi::blkif::{info, key};
use ring_abi::ring::MAX_PAGES;
use ring_abi::{EventPort, GrantRef};
use xenbus::{KeyError, Keys};

use crate::engine::DiskInfo;

/// Value of the key `max-ring-page-order`: rings of up to 16 pages.
pub const MAX_RING_PAGE_ORDER: u32 = MAX_PAGES.ilog2();

/// The frontend's keys that are read here, with `%u` for a number.
pub const FRONTEND_KEYS: [&str; 8] = [
    key::RING_REF,
    "ring-ref%u",
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
/// assert_eq!((negotiated.abi, negotiated.refs), (Abi::X86_64, vec![GrantRef(8)]));
/// # Ok::<(), xenbus::KeyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Layout of the ring's slots.
    pub abi: Abi,
    /// Grants of the ring's pages, 1 to 16, a power of two of them.
    pub refs: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: EventPort,
    /// Both ends use persistent grants: the same pages again and again, all writable (`feature-persistent`).
    pub persistent: bool,
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
        let port = EventPort(other.need(key::EVENT_CHANNEL)?);
        if other.or(key::MULTI_QUEUE_NUM_QUEUES, 1u32)? != 1 {
            return Err(other.error(key::MULTI_QUEUE_NUM_QUEUES, "1, as multi-queue-max-queues says"));
        }
        let persistent = other.flag(key::FEATURE_PERSISTENT)? && own.flag(key::FEATURE_PERSISTENT)?;
        Ok(Negotiated { abi, refs: refs(other)?, port, persistent })
    }
}

impl std::fmt::Display for Negotiated {
    /// Writes all that distinguishes two rings of a device.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Negotiated { abi, refs, port, .. } = self;
        write!(
            f,
            "{abi:?} ring of grants {:?}, event channel {port}",
            refs.iter().map(|r| r.0).collect::<Vec<_>>()
        )
    }
}

fn refs(keys: &Keys) -> Result<Vec<GrantRef>, KeyError> {
    let order = match keys.opt::<u32>(key::RING_PAGE_ORDER)? {
        Some(order) if order > MAX_RING_PAGE_ORDER => {
            return Err(keys.error(key::RING_PAGE_ORDER, "a number from 0 to 4, as max-ring-page-order says"));
        }
        Some(order) => order,
        // `num-ring-pages` is the older key, in pages.
        None => match keys.or(key::NUM_RING_PAGES, 1u32)? {
            pages if pages.is_power_of_two() && pages <= MAX_PAGES as u32 => pages.ilog2(),
            _ => return Err(keys.error(key::NUM_RING_PAGES, "1, 2, 4, 8 or 16")),
        },
    };
    // A frontend with a ring of one page may write either key.
    if order == 0 && keys.get(&ring_ref(0)).is_none() {
        return Ok(vec![GrantRef(keys.need(key::RING_REF)?)]);
    }
    (0..1u32 << order).map(|page| Ok(GrantRef(keys.need(&ring_ref(page))?))).collect()
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

/// The keys that the backend publishes; `persistent`: persistent grants are supported.
pub fn backend_keys(disk: &DiskInfo, persistent: bool) -> Keys {
    let flush = u8::from(disk.flush);
    let keys = Keys::default()
        .with(key::FEATURE_BARRIER, flush)
        .with(key::FEATURE_FLUSH_CACHE, flush)
        .with(key::FEATURE_PERSISTENT, u8::from(persistent))
        .with(key::MAX_RING_PAGE_ORDER, MAX_RING_PAGE_ORDER)
        .with(key::MAX_RING_PAGES, MAX_PAGES)
        .with(key::MULTI_QUEUE_MAX_QUEUES, 1)
        .with(key::SECTORS, disk.sectors)
        .with(key::SECTOR_SIZE, disk.sector_size)
        .with(key::PHYSICAL_SECTOR_SIZE, disk.physical_sector_size)
        .with(key::INFO, info(disk));
    match disk.read_only {
        true => keys.with(key::MODE, "r"),
        // The toolstack's, `w` or `w!`, which the next process needs too.
        false => keys,
    }
}

#[cfg(test)]
mod tests;
