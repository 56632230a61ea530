//! Extras: slots that say more of the packet around them, `struct netif_extra_info` (netif.h:1004), 8 bytes.

/// `XEN_NETIF_EXTRA_TYPE_GSO`.
pub const TYPE_GSO: u8 = 1;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_ADD`.
pub const TYPE_MCAST_ADD: u8 = 2;
/// `XEN_NETIF_EXTRA_TYPE_MCAST_DEL`.
pub const TYPE_MCAST_DEL: u8 = 3;
/// `XEN_NETIF_EXTRA_TYPE_HASH`.
pub const TYPE_HASH: u8 = 4;
/// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra follows.
pub const FLAG_MORE: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `XEN_NETIF_GSO_TYPE_TCPV6`.
pub const GSO_TCPV6: u8 = 2;

/// An extra's meaning, and whether another follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extra {
    /// [`FLAG_MORE`] was set.
    pub more: bool,
    /// What it says.
    pub kind: Kind,
}

/// What an extra says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The packet is to be cut into segments.
    Gso {
        /// Bytes of payload in each segment.
        size: u16,
        /// [`GSO_TCPV4`] or [`GSO_TCPV6`].
        gso_type: u8,
    },
    /// Receive this multicast address.
    McastAdd([u8; 6]),
    /// Receive this multicast address no longer.
    McastDel([u8; 6]),
    /// The packet's hash.
    Hash {
        /// `XEN_NETIF_CTRL_HASH_TYPE_*`, as a bit number.
        hash_type: u8,
        /// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
        algorithm: u8,
        /// The hash, most significant byte first for Toeplitz.
        value: [u8; 4],
    },
    /// A type that this protocol does not know, as found.
    Unknown(u8),
}

impl Extra {
    /// From the wire's two words.
    #[inline]
    pub fn from_words(words: [u32; 2]) -> Self {
        let [kind, flags, a, b] = words[0].to_le_bytes();
        let [c, d, e, f] = words[1].to_le_bytes();
        let kind = match kind {
            TYPE_GSO => Kind::Gso { size: u16::from_le_bytes([a, b]), gso_type: c },
            TYPE_MCAST_ADD => Kind::McastAdd([a, b, c, d, e, f]),
            TYPE_MCAST_DEL => Kind::McastDel([a, b, c, d, e, f]),
            TYPE_HASH => Kind::Hash { hash_type: a, algorithm: b, value: [c, d, e, f] },
            other => Kind::Unknown(other),
        };
        Self { more: flags & FLAG_MORE != 0, kind }
    }

    /// To the wire's two words; every byte is written.
    #[inline]
    pub fn to_words(self) -> [u32; 2] {
        let (kind, [a, b, c, d, e, f]) = match self.kind {
            Kind::Gso { size, gso_type } => {
                let [low, high] = size.to_le_bytes();
                (TYPE_GSO, [low, high, gso_type, 0, 0, 0])
            }
            Kind::McastAdd(address) => (TYPE_MCAST_ADD, address),
            Kind::McastDel(address) => (TYPE_MCAST_DEL, address),
            Kind::Hash { hash_type, algorithm, value: [c, d, e, f] } => {
                (TYPE_HASH, [hash_type, algorithm, c, d, e, f])
            }
            Kind::Unknown(kind) => (kind, [0; 6]),
        };
        let flags = if self.more { FLAG_MORE } else { 0 };
        [u32::from_le_bytes([kind, flags, a, b]), u32::from_le_bytes([c, d, e, f])]
    }
}
