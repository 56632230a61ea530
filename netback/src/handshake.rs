//! A vif's handshake as values: what the backend offers, what the frontend's keys agree to, and what to do next.
//!
//! Everything is decided by what stands in the store now, never by what changed: events merge and come late.

use bridge::Caps;
use ring_abi::xenbus::XenbusState;
use ring_abi::{EventPort, GrantRef};
use xenstore::{KeyError, Keys};

/// Largest `mtu` that is taken: 64 KiB - 1 bytes with an Ethernet header (netif.h, `XEN_NETIF_MAX_TX_SIZE`).
pub(crate) const MTU_MAX: u32 = 65_535 - 14;
/// Ethernet's own, where the toolstack wrote none.
const MTU_DEFAULT: u32 = 1500;

/// The keys that this backend offers; `gso` where TCP segmentation can be done behind it.
pub fn offer(gso: bool) -> Keys {
    let gso = u8::from(gso);
    Keys::default()
        .with("feature-rx-copy", 1)
        // FreeBSD's netfront takes its absence for 1.
        .with("feature-rx-flip", 0)
        .with("feature-sg", 1)
        .with("feature-gso-tcpv4", gso)
        .with("feature-gso-tcpv6", gso)
        .with("feature-ipv6-csum-offload", 1)
        .with("feature-split-event-channels", 1)
        .with("multi-queue-max-queues", 1)
}

/// The event channels of the one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Events {
    /// `event-channel`: one for both rings.
    Both(EventPort),
    /// `event-channel-tx` and `event-channel-rx`.
    Split {
        /// The transmit ring's.
        tx: EventPort,
        /// The receive ring's.
        rx: EventPort,
    },
}

/// What the frontend's keys come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The transmit ring's page.
    pub tx: GrantRef,
    /// The receive ring's page.
    pub rx: GrantRef,
    /// How the two ends wake each other.
    pub events: Events,
    /// What the frontend can receive.
    pub caps: Caps,
}

impl Agreed {
    /// Reads the frontend's keys; `own` are the backend's, `gso` what was offered.
    ///
    /// # Errors
    /// [`KeyError`] names the key: the device is closed.
    pub fn parse(front: &Keys, own: &Keys, gso: bool) -> Result<Self, KeyError> {
        if !front.flag("request-rx-copy")? {
            return Err(front.error("request-rx-copy", "1: pages are not flipped"));
        }
        if front.or("multi-queue-num-queues", 1u32)? != 1 {
            return Err(front.error("multi-queue-num-queues", "1, as offered"));
        }
        // One queue may stand at the top or, as from FreeBSD and Windows, in `queue-0`.
        let queue = if front.get("tx-ring-ref").is_some() { front.clone() } else { front.below("queue-0") };
        Ok(Self {
            tx: GrantRef(queue.need("tx-ring-ref")?),
            rx: GrantRef(queue.need("rx-ring-ref")?),
            events: events(&queue)?,
            caps: caps(front, own, gso)?,
        })
    }
}

fn events(queue: &Keys) -> Result<Events, KeyError> {
    match (queue.opt("event-channel-tx")?, queue.opt("event-channel-rx")?) {
        (Some(tx), Some(rx)) => Ok(Events::Split { tx: EventPort(tx), rx: EventPort(rx) }),
        _ => Ok(Events::Both(EventPort(queue.need("event-channel")?))),
    }
}

fn caps(front: &Keys, own: &Keys, gso: bool) -> Result<Caps, KeyError> {
    let mtu = own.or("mtu", MTU_DEFAULT)?;
    if !(68..=MTU_MAX).contains(&mtu) {
        return Err(own.error("mtu", "68 to 65521"));
    }
    let sg = front.flag("feature-sg")?;
    Ok(Caps {
        // Without sg a frame has one page, with a tag as well.
        mtu: if sg { mtu } else { mtu.min(ring_abi::PAGE_SIZE as u32 - 18) },
        csum_v4: !front.flag("feature-no-csum-offload")?,
        csum_v6: front.flag("feature-ipv6-csum-offload")?,
        sg,
        gso_v4: gso && sg && front.flag("feature-gso-tcpv4")?,
        gso_v6: gso && sg && front.flag("feature-gso-tcpv6")?,
    })
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing.
    Stay,
    /// End what is connected, write the offer and go to InitWait.
    Offer,
    /// Read the frontend's keys, connect, and go to Connected.
    Connect,
    /// End what is connected and go to this state.
    Close(XenbusState),
}

/// What a vif remembers between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshake {
    /// This process serves the rings.
    connected: bool,
}

impl Handshake {
    /// Whether the rings are being served.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Says that connecting succeeded, or that service ended by itself.
    pub fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
    }

    /// What to do, given both states and whether the toolstack still wants the device. The caller does it: after
    /// [`Step::Offer`] and [`Step::Close`] nothing is connected.
    pub fn step(&mut self, own: XenbusState, front: XenbusState, online: bool) -> Step {
        let step = match self.wish(own, front, online) {
            // Already so, and nothing to end.
            Step::Close(state) if state == own && !self.connected => Step::Stay,
            step => step,
        };
        if matches!(step, Step::Close(_) | Step::Offer) {
            self.connected = false;
        }
        step
    }

    fn wish(&self, own: XenbusState, front: XenbusState, online: bool) -> Step {
        use XenbusState::*;
        match front {
            Closed => self.closed(own, online),
            Closing => Step::Close(if own == Closed { Closed } else { Closing }),
            _ if !online && (!self.connected || front == Initialising) => Step::Close(Closed),
            // The toolstack or an error closes: the frontend has to follow.
            _ if own == Closing && front != Initialising => Step::Stay,
            Initialising if own == InitWait && !self.connected => Step::Stay,
            Initialising => Step::Offer,
            Initialised | Connected => self.ready(own),
            Unknown | InitWait | Reconfiguring | Reconfigured => Step::Stay,
        }
    }

    fn closed(&self, own: XenbusState, online: bool) -> Step {
        use XenbusState::*;
        match own {
            // It has not begun: its driver may not be loaded yet.
            Unknown | Initialising | InitWait if online && !self.connected => Step::Stay,
            _ => Step::Close(Closed),
        }
    }

    fn ready(&self, own: XenbusState) -> Step {
        match own {
            XenbusState::Connected if self.connected => Step::Stay,
            // The state could not be written the last time; the caller writes it again.
            _ if self.connected => Step::Connect,
            XenbusState::InitWait => Step::Connect,
            XenbusState::Closed => Step::Stay,
            // An earlier process served these rings. Closing and opening is the one way of beginning anew in which
            // each end waits for the other: of InitWait and back the frontend, or we, may miss one half.
            _ => Step::Close(XenbusState::Closing),
        }
    }
}
