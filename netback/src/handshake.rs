//! What a vif negotiates: the backend's keys, and the frontend's as a value. Does no I/O.

use bridge::{Addresses, Caps, Flag, Flags, Flood, Lock, Rate, RateLimits, StormLimits, Vlans, fdb};
use ring_abi::netif::{MTU_DEFAULT, MTU_MAX, MTU_MIN, MTU_RANGE, Mac, key};
use ring_abi::{EventPort, GrantRef};
use std::time::Duration;
use xenbus::{KeyError, Keys};

/// The frontend's keys that are read here. Those of a queue may be below `queue-0` too.
pub const FRONTEND_KEYS: [&str; 17] = [
    key::TX_RING_REF,
    key::RX_RING_REF,
    key::EVENT_CHANNEL,
    key::EVENT_CHANNEL_TX,
    key::EVENT_CHANNEL_RX,
    "queue-0/tx-ring-ref",
    "queue-0/rx-ring-ref",
    "queue-0/event-channel",
    "queue-0/event-channel-tx",
    "queue-0/event-channel-rx",
    key::MULTI_QUEUE_NUM_QUEUES,
    key::REQUEST_RX_COPY,
    key::FEATURE_SG,
    key::FEATURE_GSO_TCPV4,
    key::FEATURE_GSO_TCPV6,
    key::FEATURE_NO_CSUM_OFFLOAD,
    key::FEATURE_IPV6_CSUM_OFFLOAD,
];

/// What a backend can do that not every one can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offered {
    /// Packets for TCP segmentation can be passed on.
    pub gso: bool,
    /// An event channel for each ring.
    pub split: bool,
    /// The hypervisor lets this domain transfer pages.
    pub flip: bool,
}

/// The features that this backend advertises.
///
/// ```
/// use netback::handshake::{Offered, backend_keys};
/// use ring_abi::netif::key;
///
/// let keys = backend_keys(Offered { gso: true, split: false, flip: false });
/// assert_eq!((keys.get(key::FEATURE_GSO_TCPV4), keys.get(key::FEATURE_RX_FLIP)), (Some("1"), Some("0")));
/// ```
pub fn backend_keys(offered: Offered) -> Keys {
    let gso = u8::from(offered.gso);
    Keys::default()
        .with(key::FEATURE_RX_COPY, 1)
        // FreeBSD's netfront takes its absence for 1.
        .with(key::FEATURE_RX_FLIP, u8::from(offered.flip))
        .with(key::FEATURE_SG, 1)
        .with(key::FEATURE_GSO_TCPV4, gso)
        .with(key::FEATURE_GSO_TCPV6, gso)
        .with(key::FEATURE_IPV6_CSUM_OFFLOAD, 1)
        .with(key::FEATURE_SPLIT_EVENT_CHANNELS, u8::from(offered.split))
        .with(key::MULTI_QUEUE_MAX_QUEUES, 1)
}

/// Event channel ports of the vif's one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventPorts {
    /// `event-channel`: one for both rings.
    Shared(EventPort),
    /// `event-channel-tx` and `event-channel-rx`: one for each ring.
    Split {
        /// The transmit ring's.
        tx: EventPort,
        /// The receive ring's.
        rx: EventPort,
    },
}

/// A connection as the frontend's keys describe it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// The transmit ring's page.
    pub tx_ring: GrantRef,
    /// The receive ring's page.
    pub rx_ring: GrantRef,
    /// The rings' event channels.
    pub events: EventPorts,
    /// What the frontend can receive.
    pub caps: Caps,
    /// The frontend's receive requests accept pages (`request-rx-copy` is 0), instead of granting them to be written.
    pub flips: bool,
}

impl Negotiated {
    /// Reads the frontend's keys `other`, and of the backend's `own` its `mtu` and what it advertised.
    ///
    /// # Errors
    /// [`KeyError`] names a key that is missing or has another value than those advertised: the device is closed.
    pub fn from_keys(own: &Keys, other: &Keys) -> Result<Self, KeyError> {
        let flips = !other.flag(key::REQUEST_RX_COPY)?;
        if flips && !own.flag(key::FEATURE_RX_FLIP)? {
            return Err(other.error(key::REQUEST_RX_COPY, "1: pages are not flipped"));
        }
        if other.or(key::MULTI_QUEUE_NUM_QUEUES, 1u32)? != 1 {
            return Err(other.error(key::MULTI_QUEUE_NUM_QUEUES, "1, as offered"));
        }
        // FreeBSD and Windows write the keys of a single queue below `queue-0` as well.
        let is_flat = other.get(key::TX_RING_REF).is_some();
        let queue = if is_flat { other.clone() } else { other.below("queue-0") };
        Ok(Self {
            tx_ring: GrantRef(queue.need(key::TX_RING_REF)?),
            rx_ring: GrantRef(queue.need(key::RX_RING_REF)?),
            events: events(&queue)?,
            caps: caps(own, other)?,
            flips,
        })
    }
}

/// What the guest may send: the toolstack's keys `rate`, as libxl writes it, of bytes and the microseconds that they last, and
/// `rate-packets`.
///
/// # Errors
/// [`KeyError`] if one of the keys has another form.
pub fn rate(own: &Keys) -> Result<RateLimits, KeyError> {
    limits(own, [key::RATE, key::RATE_PACKETS])
}

/// What the guest is sent: the toolstack's keys `rate-in` and `rate-in-packets`, in the form of those of [`rate`].
///
/// # Errors
/// [`KeyError`] if one of the keys has another form.
pub fn rate_in(own: &Keys) -> Result<RateLimits, KeyError> {
    limits(own, [key::RATE_IN, key::RATE_IN_PACKETS])
}

fn limits(own: &Keys, [bytes, packets]: [&str; 2]) -> Result<RateLimits, KeyError> {
    let bytes_expected =
        ["bytes, a comma and microseconds, such as 62500,50000", "at least one byte in an interval"];
    let packets_expected =
        ["packets, a comma and microseconds, such as 50,50000", "at least one packet in an interval"];
    Ok(RateLimits {
        bytes: limit(own, bytes, bytes_expected)?,
        packets: limit(own, packets, packets_expected)?,
    })
}

fn limit(own: &Keys, key: &str, [form, least]: [&'static str; 2]) -> Result<Option<Rate>, KeyError> {
    let Some(text) = own.get(key) else { return Ok(None) };
    let invalid = || own.error(key, form);
    let (amount, interval) = text.split_once(',').ok_or_else(invalid)?;
    let amount = amount.parse().map_err(|_| invalid())?;
    let interval = Duration::from_micros(interval.parse().map_err(|_| invalid())?);
    match (amount, interval) {
        (_, Duration::ZERO) => Ok(None),
        (0, _) => Err(own.error(key, least)),
        (amount, interval) => Ok(Some(Rate { amount, interval })),
    }
}

/// Which frames the guest may send by their addresses: the toolstack's key `lock`, or else `default`, which is stricter where the key `ip`
/// has addresses. These are returned with [`Lock::Ip`].
///
/// # Errors
/// [`KeyError`] if one of the keys has another value.
pub fn lock(own: &Keys, default: Lock) -> Result<(Lock, Addresses), KeyError> {
    let ip = own.get(key::IP).unwrap_or_default();
    let lock = match own.get(key::LOCK) {
        Some(text) => text.parse().map_err(|_| own.error(key::LOCK, Lock::EXPECTED))?,
        None if default == Lock::Mac && !ip.trim().is_empty() => Lock::Ip,
        None => default,
    };
    if lock != Lock::Ip {
        return Ok((lock, Addresses::default()));
    }
    let allowed = ip.parse().map_err(|_| own.error(key::IP, Addresses::EXPECTED))?;
    Ok((lock, allowed))
}

/// The VLANs that the guest is in on a bridge: the toolstack's key `vlan`.
///
/// # Errors
/// [`KeyError`] if the key has another form.
pub fn vlans(own: &Keys) -> Result<Vlans, KeyError> {
    match own.get(key::VLAN).unwrap_or_default().trim() {
        "" => Ok(Vlans::untagged()),
        text => text.parse().map_err(|_| own.error(key::VLAN, Vlans::EXPECTED)),
    }
}

/// The flags of the guest's port of a bridge: the toolstack's keys of [`Flags::NAMES`].
///
/// # Errors
/// [`KeyError`] if one of them is neither `on` nor `off`.
pub fn flags(own: &Keys) -> Result<Flags, KeyError> {
    let mut flags = Flags::default();
    for flag in Flag::ALL {
        if let Some(text) = own.get(flag.name()) {
            flags.set(flag, Flags::parse(text).ok_or_else(|| own.error(flag.name(), Flags::EXPECTED))?);
        }
    }
    Ok(flags)
}

/// How much the guest may send to many others at once on a bridge: the toolstack's keys of [`StormLimits::NAMES`], or else `default`.
///
/// # Errors
/// [`KeyError`] if one of them is no limit.
pub fn storm(own: &Keys, default: StormLimits) -> Result<StormLimits, KeyError> {
    let mut limits = default;
    for flood in Flood::ALL {
        let name = flood.limit_name();
        if let Some(text) = own.get(name) {
            limits
                .set(flood, StormLimits::parse(text).ok_or_else(|| own.error(name, StormLimits::EXPECTED))?);
        }
    }
    Ok(limits)
}

/// The guest's address, which the toolstack wrote for the backend.
///
/// # Errors
/// [`KeyError`] if the key is no address of a station, or if there is none and `lock` needs it.
pub fn address(own: &Keys, lock: Lock) -> Result<Option<fdb::Mac>, KeyError> {
    let invalid = || own.error(key::MAC, "the address of one interface, such as 00:16:3e:01:02:03");
    let address: Option<Mac> = own.opt(key::MAC)?;
    match address.map(|Mac(bytes)| fdb::Mac::new(bytes)) {
        None if lock.needs_address() => Err(invalid()),
        Some(address) if !address.is_station() => Err(invalid()),
        address => Ok(address),
    }
}

fn events(queue: &Keys) -> Result<EventPorts, KeyError> {
    match (queue.opt(key::EVENT_CHANNEL_TX)?, queue.opt(key::EVENT_CHANNEL_RX)?) {
        (Some(tx), Some(rx)) => Ok(EventPorts::Split { tx: EventPort(tx), rx: EventPort(rx) }),
        _ => Ok(EventPorts::Shared(EventPort(queue.need(key::EVENT_CHANNEL)?))),
    }
}

fn caps(own: &Keys, other: &Keys) -> Result<Caps, KeyError> {
    let mtu = own.or(key::MTU, MTU_DEFAULT)?;
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(own.error(key::MTU, MTU_RANGE));
    }
    let sg = other.flag(key::FEATURE_SG)?;
    let gso = |key| Ok(own.flag(key)? && other.flag(key)?);
    Ok(Caps {
        // Without sg a frame, with its header and a VLAN tag, fits one page.
        mtu: if sg { mtu } else { mtu.min(ring_abi::PAGE_SIZE as u32 - 18) },
        csum_v4: !other.flag(key::FEATURE_NO_CSUM_OFFLOAD)?,
        csum_v6: other.flag(key::FEATURE_IPV6_CSUM_OFFLOAD)?,
        csum_anywhere: false,
        sg,
        gso_v4: sg && gso(key::FEATURE_GSO_TCPV4)?,
        gso_v6: sg && gso(key::FEATURE_GSO_TCPV6)?,
    })
}
