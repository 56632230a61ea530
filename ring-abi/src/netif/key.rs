//! Names of a network interface's nodes in the store (netif.h:34 to 190), and who writes each.
//!
//! Numbers are decimal; flags are 0 or 1, and 0 where nothing else is said.

pub use crate::xenbus::key::{
    BACKEND, BACKEND_ID, EVENT_CHANNEL, FRONTEND, FRONTEND_ID, HANDLE, HOTPLUG_ERROR, HOTPLUG_STATUS,
    MULTI_QUEUE_MAX_QUEUES, MULTI_QUEUE_NUM_QUEUES, ONLINE, SCRIPT, STATE, TRUSTED, TYPE,
};

// What a side can do.

/// Written by each side: flag, takes packets of more than one slot.
pub const FEATURE_SG: &str = "feature-sg";
/// Written by each side: flag, takes TCP over IPv4 to be cut.
pub const FEATURE_GSO_TCPV4: &str = "feature-gso-tcpv4";
/// Written by each side: flag, takes TCP over IPv6 to be cut.
pub const FEATURE_GSO_TCPV6: &str = "feature-gso-tcpv6";
/// Written by the frontend: flag, takes no blank checksums over IPv4.
pub const FEATURE_NO_CSUM_OFFLOAD: &str = "feature-no-csum-offload";
/// Written by each side: flag, takes blank checksums over IPv6.
pub const FEATURE_IPV6_CSUM_OFFLOAD: &str = "feature-ipv6-csum-offload";
/// Written by the backend: flag, copies into the frontend's pages.
pub const FEATURE_RX_COPY: &str = "feature-rx-copy";
/// Written by the backend: flag, transfers pages; some frontends take 1 for absent, so always write it.
pub const FEATURE_RX_FLIP: &str = "feature-rx-flip";
/// Written by the frontend: flag, pages are to be copied into.
pub const REQUEST_RX_COPY: &str = "request-rx-copy";
/// Written by the frontend: flag, tells of receive requests.
pub const FEATURE_RX_NOTIFY: &str = "feature-rx-notify";
/// Written by the backend: flag, a channel for each ring.
pub const FEATURE_SPLIT_EVENT_CHANNELS: &str = "feature-split-event-channels";
/// Written by the backend: flag, filters multicast.
pub const FEATURE_MULTICAST_CONTROL: &str = "feature-multicast-control";
/// Written by the backend: flag, [`REQUEST_MULTICAST_CONTROL`] is watched.
pub const FEATURE_DYNAMIC_MULTICAST_CONTROL: &str = "feature-dynamic-multicast-control";
/// Written by the frontend: flag, multicast is to be filtered.
pub const REQUEST_MULTICAST_CONTROL: &str = "request-multicast-control";
/// Written by the backend: flag, has a control ring ([`super::ctrl`]).
pub const FEATURE_CTRL_RING: &str = "feature-ctrl-ring";
/// Written by the backend: flag, leaves [`XDP_HEADROOM`] (Linux's own).
pub const FEATURE_XDP_HEADROOM: &str = "feature-xdp-headroom";
/// Written by the frontend: bytes to be left before a frame (Linux's own).
pub const XDP_HEADROOM: &str = "xdp-headroom";

// The rings.

/// Written by the frontend: grant of the transmit ring.
pub const TX_RING_REF: &str = "tx-ring-ref";
/// Written by the frontend: grant of the receive ring.
pub const RX_RING_REF: &str = "rx-ring-ref";
/// Written by the frontend: port for the transmit ring.
pub const EVENT_CHANNEL_TX: &str = "event-channel-tx";
/// Written by the frontend: port for the receive ring.
pub const EVENT_CHANNEL_RX: &str = "event-channel-rx";
/// Written by the frontend: grant of the control ring.
pub const CTRL_RING_REF: &str = "ctrl-ring-ref";
/// Written by the frontend: port for the control ring.
pub const EVENT_CHANNEL_CTRL: &str = "event-channel-ctrl";

// The interface.

/// Written by the backend: flag, default 1: the link is up.
pub const CARRIER: &str = "carrier";
/// Written by the toolstack into both directories: the frontend's address.
pub const MAC: &str = "mac";
/// Written by the toolstack into both directories: bytes, default 1500.
pub const MTU: &str = "mtu";
/// Written by the toolstack into the backend's directory: the interface's name in the backend's domain.
pub const VIFNAME: &str = "vifname";
/// Written by the toolstack into the backend's directory: the bridge to join.
pub const BRIDGE: &str = "bridge";
/// Written by the toolstack into the backend's directory: addresses that the frontend may use.
pub const IP: &str = "ip";
/// Written by the toolstack into the backend's directory: the device to route through.
pub const GATEWAYDEV: &str = "gatewaydev";
/// Written by the toolstack into the backend's directory: `BYTES,MICROSECONDS`: what the frontend may send in an
/// interval.
pub const RATE: &str = "rate";
/// Written by xpv's toolstack into the backend's directory: `PACKETS,MICROSECONDS`: what the frontend may send in an interval.
pub const RATE_PACKETS: &str = "rate-packets";
/// Written by xpv's toolstack into the backend's directory, in the form of [`RATE`]: what the frontend is sent in an interval.
pub const RATE_IN: &str = "rate-in";
/// Written by xpv's toolstack into the backend's directory, in the form of [`RATE_PACKETS`]: what the frontend is sent in an
/// interval.
pub const RATE_IN_PACKETS: &str = "rate-in-packets";
/// Written by xpv's toolstack into the backend's directory: which frames the frontend may send by their addresses.
pub const LOCK: &str = "lock";
/// Written by the toolstack into the backend's directory: the virtual network.
pub const VLAN: &str = "vlan";
