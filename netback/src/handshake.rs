//! A vif's side of the xenbus handshake: builds the backend's keys, reads the frontend's, and decides the next action.
//! Does no I/O.
//!
//! Every decision is by the store's present contents, never by what changed: watch events merge and come late.

use bridge::Caps;
use ring_abi::netif::{MTU_DEFAULT, MTU_MAX, MTU_MIN, MTU_RANGE, key};
use ring_abi::xenbus::XenbusState;
use ring_abi::{EventPort, GrantRef};
use xenbus::{KeyError, Keys};

/// The features that this backend advertises; `gso` where packets for TCP segmentation can be passed on.
///
/// ```
/// use netback::handshake::backend_keys;
/// use ring_abi::netif::key;
///
/// assert_eq!(backend_keys(true).get(key::FEATURE_GSO_TCPV4), Some("1"));
/// ```
pub fn backend_keys(gso: bool) -> Keys {
    let gso = u8::from(gso);
    Keys::default()
        .with(key::FEATURE_RX_COPY, 1)
        // FreeBSD's netfront takes its absence for 1.
        .with(key::FEATURE_RX_FLIP, 0)
        .with(key::FEATURE_SG, 1)
        .with(key::FEATURE_GSO_TCPV4, gso)
        .with(key::FEATURE_GSO_TCPV6, gso)
        .with(key::FEATURE_IPV6_CSUM_OFFLOAD, 1)
        .with(key::FEATURE_SPLIT_EVENT_CHANNELS, 1)
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
}

impl Negotiated {
    /// Reads the frontend's keys and, of the backend's own, `mtu`. `gso` is what [`backend_keys`] advertised.
    ///
    /// # Errors
    /// [`KeyError`] names a key that is missing or has another value than those advertised: the device is closed.
    pub fn parse(front: &Keys, own: &Keys, gso: bool) -> Result<Self, KeyError> {
        if !front.flag(key::REQUEST_RX_COPY)? {
            return Err(front.error(key::REQUEST_RX_COPY, "1: pages are not flipped"));
        }
        if front.or(key::MULTI_QUEUE_NUM_QUEUES, 1u32)? != 1 {
            return Err(front.error(key::MULTI_QUEUE_NUM_QUEUES, "1, as offered"));
        }
        // FreeBSD and Windows write the keys of a single queue below `queue-0` as well.
        let is_flat = front.get(key::TX_RING_REF).is_some();
        let queue = if is_flat { front.clone() } else { front.below("queue-0") };
        Ok(Self {
            tx_ring: GrantRef(queue.need(key::TX_RING_REF)?),
            rx_ring: GrantRef(queue.need(key::RX_RING_REF)?),
            events: events(&queue)?,
            caps: caps(front, own, gso)?,
        })
    }
}

fn events(queue: &Keys) -> Result<EventPorts, KeyError> {
    match (queue.opt(key::EVENT_CHANNEL_TX)?, queue.opt(key::EVENT_CHANNEL_RX)?) {
        (Some(tx), Some(rx)) => Ok(EventPorts::Split { tx: EventPort(tx), rx: EventPort(rx) }),
        _ => Ok(EventPorts::Shared(EventPort(queue.need(key::EVENT_CHANNEL)?))),
    }
}

fn caps(front: &Keys, own: &Keys, gso: bool) -> Result<Caps, KeyError> {
    let mtu = own.or(key::MTU, MTU_DEFAULT)?;
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(own.error(key::MTU, MTU_RANGE));
    }
    let sg = front.flag(key::FEATURE_SG)?;
    Ok(Caps {
        // Without sg a frame, with its header and a VLAN tag, fits one page.
        mtu: if sg { mtu } else { mtu.min(ring_abi::PAGE_SIZE as u32 - 18) },
        csum_v4: !front.flag(key::FEATURE_NO_CSUM_OFFLOAD)?,
        csum_v6: front.flag(key::FEATURE_IPV6_CSUM_OFFLOAD)?,
        sg,
        gso_v4: gso && sg && front.flag(key::FEATURE_GSO_TCPV4)?,
        gso_v6: gso && sg && front.flag(key::FEATURE_GSO_TCPV6)?,
    })
}

/// What the backend does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing, until a state changes.
    Wait,
    /// Drop the connection, publish [`backend_keys`] and go to InitWait.
    Advertise,
    /// Read the frontend's keys, connect, and go to Connected.
    Connect,
    /// Drop the connection and go to this state.
    Close(XenbusState),
}

/// The handshake's state from one [`Handshake::step`] to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshake {
    /// This process serves the rings.
    connected: bool,
}

impl Handshake {
    /// Whether this process serves the rings.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Records that connecting succeeded, or that the connection failed.
    pub fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
    }

    /// Decides the next action, given both states and whether the toolstack still wants the device. The caller carries
    /// it out; nothing is connected after [`Action::Advertise`] and [`Action::Close`].
    pub fn step(&mut self, own: XenbusState, front: XenbusState, online: bool) -> Action {
        let action = match self.decide(own, front, online) {
            // The state is written already, and nothing is connected.
            Action::Close(state) if state == own && !self.connected => Action::Wait,
            action => action,
        };
        if matches!(action, Action::Close(_) | Action::Advertise) {
            self.connected = false;
        }
        action
    }

    fn decide(&self, own: XenbusState, front: XenbusState, online: bool) -> Action {
        use XenbusState::*;
        match front {
            Closed => self.front_closed(own, online),
            Closing => Action::Close(if own == Closed { Closed } else { Closing }),
            _ if !online && (!self.connected || front == Initialising) => Action::Close(Closed),
            // The toolstack closes the device, or an error did: the frontend has to follow.
            _ if own == Closing && front != Initialising => Action::Wait,
            Initialising if own == InitWait && !self.connected => Action::Wait,
            Initialising => Action::Advertise,
            Initialised | Connected => self.front_ready(own),
            Unknown | InitWait | Reconfiguring | Reconfigured => Action::Wait,
        }
    }

    fn front_closed(&self, own: XenbusState, online: bool) -> Action {
        use XenbusState::*;
        match own {
            // The frontend has not started: its driver may not be loaded yet.
            Unknown | Initialising | InitWait if online && !self.connected => Action::Wait,
            _ => Action::Close(Closed),
        }
    }

    fn front_ready(&self, own: XenbusState) -> Action {
        match own {
            XenbusState::Connected if self.connected => Action::Wait,
            // Writing the state failed the last time: the caller writes it again.
            _ if self.connected => Action::Connect,
            XenbusState::InitWait => Action::Connect,
            XenbusState::Closed => Action::Wait,
            // An earlier process served these rings. Closing first makes each end wait for the other; by going
            // straight to InitWait, either end might miss the other's states in between.
            _ => Action::Close(XenbusState::Closing),
        }
    }
}
