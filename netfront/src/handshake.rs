//! What a vif negotiates: the frontend's keys, and the backend's as a value. Does no I/O.

use alloc::string::ToString;
use ring_abi::netif::{MTU_DEFAULT, MTU_MAX, MTU_MIN, MTU_RANGE, Mac, key};
use ring_abi::xenbus::XenbusState;
use ring_abi::{EventPort, GrantRef};
use xenbus::handshake::front::Manner;
use xenbus::{KeyError, Keys};

/// Not by way of Initialised, as Linux's netback connects when the frontend is Connected. Frames in flight may be lost, so
/// that an interface connects again whenever it can.
pub const MANNER: Manner = Manner { offers_with: XenbusState::Connected, reopens: true };

/// Features that the user of an interface requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requested {
    /// Received packets may have blank transport checksums.
    pub csum: bool,
    /// Received packets may be unsegmented TCP of up to [`MAX_TX_SIZE`](ring_abi::netif::MAX_TX_SIZE) bytes; needs
    /// `csum`.
    pub gso: bool,
    /// Receive requests accept pages of the backend's, instead of granting pages to be written.
    pub flip: bool,
}

/// Bytes of a frame from which on flipping its pages costs less than copying it: a full page. The costs cross below that, at 1,280
/// to 2,048 bytes by row N3f of `benches`, which measures pages alone; the rest of a page is zeroed besides.
pub const FLIP_FROM: usize = ring_abi::PAGE_SIZE;

/// How received frames come into this domain's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RxChoice {
    /// The backend copies them into pages that are granted to it.
    Copy,
    /// The backend transfers the pages that have them (`feature-rx-flip`): an error where it does not offer that.
    Flip,
    /// [`RxChoice::Flip`] where it is possible and frames may have [`FLIP_FROM`] bytes, otherwise [`RxChoice::Copy`].
    #[default]
    Auto,
}

impl RxChoice {
    /// Whether pages are flipped on a connection to the backend with the keys `other`, whose longest frame has `longest`
    /// bytes; `possible` where this domain's hypervisor lets it accept pages.
    ///
    /// # Errors
    /// [`KeyError`] names `feature-rx-flip` or `feature-rx-copy`, which does not allow what is wanted.
    pub fn flips(self, other: &Keys, possible: bool, longest: usize) -> Result<bool, KeyError> {
        let offered = other.flag(key::FEATURE_RX_FLIP)? && possible;
        let copies = other.flag(key::FEATURE_RX_COPY)?;
        match self {
            RxChoice::Flip if offered => Ok(true),
            RxChoice::Flip => {
                Err(other.error(key::FEATURE_RX_FLIP, "1, and a hypervisor that transfers pages"))
            }
            RxChoice::Auto if offered && (longest >= FLIP_FROM || !copies) => Ok(true),
            RxChoice::Copy | RxChoice::Auto if copies => Ok(false),
            RxChoice::Copy | RxChoice::Auto => {
                Err(other.error(key::FEATURE_RX_COPY, "1: pages are not flipped"))
            }
        }
    }
}

/// Features that the backend advertises, which this frontend may use when it sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Packets of more than one slot.
    pub sg: bool,
    /// Unsegmented TCP over IPv4.
    pub gso_v4: bool,
    /// Unsegmented TCP over IPv6.
    pub gso_v6: bool,
    /// Blank checksums of IPv6 packets.
    pub csum_v6: bool,
    /// An event channel for each ring.
    pub split: bool,
}

impl Negotiated {
    /// Reads the backend's keys `other`.
    ///
    /// # Errors
    /// [`KeyError`] names a key that is not a flag, or `feature-rx-copy` where the backend neither copies nor flips.
    pub fn from_keys(other: &Keys) -> Result<Self, KeyError> {
        if !other.flag(key::FEATURE_RX_COPY)? && !other.flag(key::FEATURE_RX_FLIP)? {
            return Err(other.error(key::FEATURE_RX_COPY, "1: pages are not flipped"));
        }
        Ok(Self {
            sg: other.flag(key::FEATURE_SG)?,
            gso_v4: other.flag(key::FEATURE_GSO_TCPV4)?,
            gso_v6: other.flag(key::FEATURE_GSO_TCPV6)?,
            csum_v6: other.flag(key::FEATURE_IPV6_CSUM_OFFLOAD)?,
            split: other.flag(key::FEATURE_SPLIT_EVENT_CHANNELS)?,
        })
    }
}

/// Grant references and event channel ports of the interface's one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueInfo {
    /// The transmit ring's page.
    pub tx_ring: GrantRef,
    /// The receive ring's page.
    pub rx_ring: GrantRef,
    /// The transmit ring's event channel, or both rings'.
    pub tx_event: EventPort,
    /// The receive ring's event channel, if it has its own.
    pub rx_event: Option<EventPort>,
}

/// Keys that belong to one connection and are removed before the next. Some are never written here: another frontend
/// may have had the interface before.
pub const CONNECTION_KEYS: [&str; 9] = [
    key::TX_RING_REF,
    key::RX_RING_REF,
    key::EVENT_CHANNEL,
    key::EVENT_CHANNEL_TX,
    key::EVENT_CHANNEL_RX,
    key::MULTI_QUEUE_NUM_QUEUES,
    key::CTRL_RING_REF,
    key::EVENT_CHANNEL_CTRL,
    key::REQUEST_MULTICAST_CONTROL,
];

/// The backend's keys that are read here.
pub const BACKEND_KEYS: [&str; 8] = [
    key::FEATURE_RX_COPY,
    key::FEATURE_RX_FLIP,
    key::FEATURE_SG,
    key::FEATURE_GSO_TCPV4,
    key::FEATURE_GSO_TCPV6,
    key::FEATURE_IPV6_CSUM_OFFLOAD,
    key::FEATURE_SPLIT_EVENT_CHANNELS,
    key::MTU,
];

/// The keys that the frontend publishes for a connection.
///
/// ```
/// use netfront::handshake::{QueueInfo, Requested, frontend_keys};
/// use ring_abi::{EventPort, GrantRef, netif::key};
///
/// let queue =
///     QueueInfo { tx_ring: GrantRef(8), rx_ring: GrantRef(9), tx_event: EventPort(3), rx_event: None };
/// let keys = frontend_keys(&queue, Requested { csum: true, gso: false, flip: false });
/// assert_eq!(keys.get(key::EVENT_CHANNEL), Some("3"));
/// assert_eq!(keys.get(key::FEATURE_GSO_TCPV4), Some("0"));
/// ```
pub fn frontend_keys(queue: &QueueInfo, requested: Requested) -> Keys {
    let gso = u8::from(requested.gso && requested.csum);
    let keys = Keys::default()
        .with(key::TX_RING_REF, queue.tx_ring)
        .with(key::RX_RING_REF, queue.rx_ring)
        .with(key::REQUEST_RX_COPY, u8::from(!requested.flip))
        .with(key::FEATURE_RX_NOTIFY, 1)
        .with(key::FEATURE_SG, 1)
        .with(key::FEATURE_GSO_TCPV4, gso)
        .with(key::FEATURE_GSO_TCPV6, gso)
        .with(key::FEATURE_NO_CSUM_OFFLOAD, u8::from(!requested.csum))
        .with(key::FEATURE_IPV6_CSUM_OFFLOAD, u8::from(requested.csum));
    match queue.rx_event {
        None => keys.with(key::EVENT_CHANNEL, queue.tx_event),
        Some(rx) => keys.with(key::EVENT_CHANNEL_TX, queue.tx_event).with(key::EVENT_CHANNEL_RX, rx),
    }
}

/// Address and mtu of an interface, as the toolstack wrote them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The interface's address.
    pub mac: Mac,
    /// Largest payload of a frame in bytes.
    pub mtu: u32,
}

impl Identity {
    /// Reads `mac` from the frontend's keys, and `mtu` from the frontend's or else the backend's.
    ///
    /// # Errors
    /// [`KeyError`] where there is no address, or where the mtu is not from [`MTU_MIN`] to [`MTU_MAX`].
    pub fn from_keys(own: &Keys, other: &Keys) -> Result<Self, KeyError> {
        let text = own.get(key::MAC).unwrap_or_default().trim_ascii();
        let mac = text.parse().map_err(|_| own.error(key::MAC, "six bytes such as 00:16:3e:01:02:03"))?;
        let mtu = own.opt(key::MTU)?.map_or_else(|| other.or(key::MTU, MTU_DEFAULT), Ok)?;
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            let error = other.error(key::MTU, MTU_RANGE);
            return Err(KeyError { found: Some(mtu.to_string()), ..error });
        }
        Ok(Self { mac, mtu })
    }
}
