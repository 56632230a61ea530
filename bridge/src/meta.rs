//! What travels beside a frame's bytes: work left for whoever sends it on, and what ports can take.

/// A partial checksum, as in `struct virtio_net_hdr` (`VIRTIO_NET_HDR_F_NEEDS_CSUM`) and Xen's `csum_blank`:
/// the internet checksum of all bytes from `start` to the end is still to be put at `start + offset`, where
/// the pseudo-header's sum stands already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csum {
    /// Bytes from the start of the frame to the first one summed.
    pub start: u16,
    /// Bytes from `start` to the checksum field.
    pub offset: u16,
}

/// Which kind of segmentation was left undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A frame longer than the wire takes, to be cut into TCP segments by whoever cannot pass it on whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The protocols it is made of.
    pub kind: GsoKind,
    /// Bytes of TCP payload in each segment.
    pub size: u16,
}

/// Work that the sender left undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to fill in. Unless it is, the checksum in the bytes is wrong.
    pub csum: Option<Csum>,
    /// The checksum is known to be right: nobody need verify it (`data_validated`).
    pub verified: bool,
    /// A segmentation to be done.
    pub gso: Option<Gso>,
}

impl Offload {
    /// Nothing is left to do and nothing known.
    pub const NONE: Offload = Offload { csum: None, verified: false, gso: None };

    /// Whether any work is left.
    pub fn is_work(&self) -> bool {
        self.csum.is_some() || self.gso.is_some()
    }
}

/// What a port can take. What it cannot, the switch does in software before it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Largest payload of an Ethernet frame in bytes, without its header (1500 as a rule).
    pub mtu: u32,
    /// Takes partial checksums in IPv4 packets.
    pub csum_v4: bool,
    /// Takes partial checksums in IPv6 packets.
    pub csum_v6: bool,
    /// Takes frames in more than one page. Without it no GSO frame is sent there either.
    pub sg: bool,
    /// Takes TCP over IPv4 unsegmented.
    pub gso_v4: bool,
    /// Takes TCP over IPv6 unsegmented.
    pub gso_v6: bool,
}

impl Caps {
    /// Finished frames only.
    pub const fn plain(mtu: u32) -> Caps {
        Caps { mtu, csum_v4: false, csum_v6: false, sg: true, gso_v4: false, gso_v6: false }
    }

    /// Everything.
    pub const fn full(mtu: u32) -> Caps {
        Caps { mtu, csum_v4: true, csum_v6: true, sg: true, gso_v4: true, gso_v6: true }
    }

    /// Longest frame in bytes that is not to be segmented: the mtu, an Ethernet header and a VLAN tag.
    pub const fn max_len(&self) -> usize {
        self.mtu as usize + 14 + 4
    }

    /// Whether frames with such a segmentation to do can be sent whole.
    pub fn takes_gso(&self, kind: GsoKind) -> bool {
        self.sg
            && match kind {
                GsoKind::TcpV4 => self.gso_v4,
                GsoKind::TcpV6 => self.gso_v6,
            }
    }
}
