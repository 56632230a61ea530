//! A frame's offload metadata, and the offloads that a port takes.

/// A partial checksum, as in `struct virtio_net_hdr` (`VIRTIO_NET_HDR_F_NEEDS_CSUM`) and Xen's `csum_blank`: the field
/// at `start + offset` has the pseudo-header's sum, and is to be set to the internet checksum of all bytes from `start`
/// to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csum {
    /// Bytes from the start of the frame to the first one summed.
    pub start: u16,
    /// Bytes from `start` to the checksum field.
    pub offset: u16,
}

/// The protocols of a frame that is to be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one size, over either version (`UDP_SEGMENT` of udp(7)).
    Udp,
}

/// Generic segmentation offload: a frame longer than the wire allows, to be cut into segments before it is sent to
/// a port that does not take it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The frame's protocols.
    pub kind: GsoKind,
    /// Bytes of payload in each segment.
    pub size: u16,
}

/// The offloads of a frame: work that its sender has left undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A partial checksum that is to be completed.
    pub csum: Option<Csum>,
    /// The checksum is known to be right and need not be verified (netif.h's `data_validated`).
    pub verified: bool,
    /// A segmentation that is to be made.
    pub gso: Option<Gso>,
}

impl Offload {
    /// No work is left, and nothing is known of the checksum.
    pub const NONE: Offload = Offload { csum: None, verified: false, gso: None };

    /// Whether a checksum or a segmentation is to be done.
    pub fn is_work(&self) -> bool {
        self.csum.is_some() || self.gso.is_some()
    }
}

/// A frame's headers do not match its offload metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offload metadata and headers do not match")]
pub struct Malformed;

/// The capabilities of a port. The switch does other offloads in software before it sends a frame there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Largest payload of an Ethernet frame in bytes, without its header (1500 as a rule).
    pub mtu: u32,
    /// Takes partial checksums in IPv4 packets.
    pub csum_v4: bool,
    /// Takes partial checksums in IPv6 packets.
    pub csum_v6: bool,
    /// Takes a partial checksum of any header, and behind VLAN tags. A port without this takes that of the outermost TCP or
    /// UDP header of an untagged frame alone: Xen's `csum_blank` carries no position, and stock frontends look there.
    pub csum_anywhere: bool,
    /// Takes frames in more than one page. A port without this is sent no GSO frame either.
    pub sg: bool,
    /// Takes TCP over IPv4 unsegmented.
    pub gso_v4: bool,
    /// Takes TCP over IPv6 unsegmented.
    pub gso_v6: bool,
}

impl Caps {
    /// Takes no offloads.
    pub const fn plain(mtu: u32) -> Caps {
        Caps {
            mtu,
            csum_v4: false,
            csum_v6: false,
            csum_anywhere: false,
            sg: true,
            gso_v4: false,
            gso_v6: false,
        }
    }

    /// Takes all offloads that a port can take.
    pub const fn full(mtu: u32) -> Caps {
        Caps { mtu, csum_v4: true, csum_v6: true, csum_anywhere: true, sg: true, gso_v4: true, gso_v6: true }
    }

    /// Bytes of the longest frame without GSO: the mtu, an Ethernet header and a VLAN tag.
    pub const fn max_len(&self) -> usize {
        self.mtu as usize + 14 + 4
    }

    /// Whether GSO frames of this kind can be sent whole. UDP's never: netif.h has no such kind, and kernels before 6.2 take
    /// none from taps and packet sockets.
    pub fn takes_gso(&self, kind: GsoKind) -> bool {
        self.sg
            && match kind {
                GsoKind::TcpV4 => self.gso_v4,
                GsoKind::TcpV6 => self.gso_v6,
                GsoKind::Udp => false,
            }
    }
}
