//! A frontend's handshake as values: what its keys say, what the backend's agree to, and what to do next.

use alloc::string::ToString;
use ring_abi::xenbus::XenbusState;
use ring_abi::{EventPort, GrantRef};
use xenstore::{KeyError, Keys};

/// What the user of an interface can deal with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wishes {
    /// Received packets may have checksums still to be filled in.
    pub csum: bool,
    /// Received packets may be TCP of up to 64 KiB - 1 bytes, not yet segmented; needs `csum`.
    pub gso: bool,
}

/// What the backend offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Packets of more than one page.
    pub sg: bool,
    /// TCP over IPv4 unsegmented.
    pub gso_v4: bool,
    /// TCP over IPv6 unsegmented.
    pub gso_v6: bool,
    /// Checksums of IPv6 packets left blank.
    pub csum_v6: bool,
    /// An event channel for each ring.
    pub split: bool,
}

impl Offer {
    /// Reads the backend's keys.
    ///
    /// # Errors
    /// [`KeyError`] names the key; among others where pages would be flipped instead of copied.
    pub fn parse(back: &Keys) -> Result<Self, KeyError> {
        if !back.flag("feature-rx-copy")? {
            return Err(back.error("feature-rx-copy", "1: pages are not flipped"));
        }
        Ok(Self {
            sg: back.flag("feature-sg")?,
            gso_v4: back.flag("feature-gso-tcpv4")?,
            gso_v6: back.flag("feature-gso-tcpv6")?,
            csum_v6: back.flag("feature-ipv6-csum-offload")?,
            split: back.flag("feature-split-event-channels")?,
        })
    }
}

/// Where this end's rings and event channels are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    /// The transmit ring's page.
    pub tx: GrantRef,
    /// The receive ring's page.
    pub rx: GrantRef,
    /// The transmit ring's event channel, or both rings'.
    pub tx_event: EventPort,
    /// The receive ring's, if it has its own.
    pub rx_event: Option<EventPort>,
}

/// Keys that belong to one connection, removed before the next: ours, and those by which a frontend that does more
/// than this one may have had the interface before.
pub const TRANSPORT_KEYS: [&str; 9] = [
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "multi-queue-num-queues",
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "request-multicast-control",
];

/// The keys of this end.
pub fn keys(transport: &Transport, wishes: Wishes) -> Keys {
    let gso = u8::from(wishes.gso && wishes.csum);
    let keys = Keys::default()
        .with("tx-ring-ref", transport.tx)
        .with("rx-ring-ref", transport.rx)
        .with("request-rx-copy", 1)
        .with("feature-rx-notify", 1)
        .with("feature-sg", 1)
        .with("feature-gso-tcpv4", gso)
        .with("feature-gso-tcpv6", gso)
        .with("feature-no-csum-offload", u8::from(!wishes.csum))
        .with("feature-ipv6-csum-offload", u8::from(wishes.csum));
    match transport.rx_event {
        None => keys.with("event-channel", transport.tx_event),
        Some(rx) => keys.with("event-channel-tx", transport.tx_event).with("event-channel-rx", rx),
    }
}

/// What the toolstack wrote of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The interface's address.
    pub mac: [u8; 6],
    /// Largest payload of a frame in bytes.
    pub mtu: u32,
}

impl Identity {
    /// Reads it from this end's keys, `mtu` from either end's.
    ///
    /// # Errors
    /// [`KeyError`] where there is no address.
    pub fn parse(own: &Keys, back: &Keys) -> Result<Self, KeyError> {
        let text = own.get("mac").unwrap_or_default();
        let mac = mac(text).ok_or_else(|| own.error("mac", "six bytes such as 00:16:3e:01:02:03"))?;
        let mtu = own.opt("mtu")?.map_or_else(|| back.or("mtu", 1500u32), Ok)?;
        if !(68..=65_521).contains(&mtu) {
            return Err(KeyError { found: Some(mtu.to_string()), ..back.error("mtu", "68 to 65521") });
        }
        Ok(Self { mac, mtu })
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.trim_ascii().split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Make rings, write the keys and go to Connected: Linux's backend wants it so, without Initialised.
    Connect,
    /// Frames may flow.
    Run,
    /// End the connection and go to this state.
    End(XenbusState),
}

/// What a frontend remembers between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshake {
    /// There are rings.
    connected: bool,
    /// The backend has said Connected since there are.
    running: bool,
}

impl Handshake {
    /// Whether frames may flow.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// What to do, given both states (absence is Closed) and whether the toolstack wants the device. The caller does
    /// it, and then writes the state.
    pub fn step(&mut self, own: XenbusState, back: XenbusState, online: bool) -> Step {
        let step = self.wish(own, back, online);
        match step {
            Step::Connect => self.connected = true,
            Step::Run => self.running = true,
            Step::End(_) => *self = Self::default(),
            Step::Stay => {}
        }
        step
    }

    fn wish(&self, own: XenbusState, back: XenbusState, online: bool) -> Step {
        use XenbusState::*;
        match back {
            InitWait | Initialised if own == Initialising && !self.connected => Step::Connect,
            // Somebody else had the backend, and it begins anew; or we do.
            InitWait | Initialised | Initialising if self.running || own == Closed => Step::End(Initialising),
            Connected if self.connected && !self.running && own == Connected => Step::Run,
            Closing if own != Closed || self.connected => Step::End(Closed),
            Closed if self.connected => Step::End(Closed),
            // Only once the backend has closed as well can both begin anew.
            Closed if own != Initialising && online => Step::End(Initialising),
            _ => Step::Stay,
        }
    }
}
