//! The Toeplitz hash, by which frames of one flow stay on one queue (netif.h:280; Microsoft's "RSS Hashing Types").
//!
//! Each bit of the input that is 1 adds, without carry, the 32 bits of the key that begin there. The sums for the 16
//! values of a half-byte at each place are the same for every packet, so they are tabulated when the key is set.

/// Bytes of a key: enough for the longest input, two IPv6 addresses and two ports.
pub const KEY_LEN: usize = 40;
/// Bytes of the longest input.
pub const INPUT_MAX: usize = 36;

/// A key made ready: sums for each half-byte of the input, 4.5 KiB, which stays in the first-level cache.
#[derive(Clone, Debug)]
pub struct Toeplitz {
    sums: [[u32; 16]; 2 * INPUT_MAX],
}

impl Toeplitz {
    /// Prepares a key; bytes it lacks are 0, and those beyond [`KEY_LEN`] have no effect on any input.
    pub fn new(key: &[u8]) -> Self {
        let mut padded = [0; KEY_LEN];
        let used = key.len().min(KEY_LEN);
        padded[..used].copy_from_slice(&key[..used]);
        let mut sums = [[0; 16]; 2 * INPUT_MAX];
        for (place, sums) in sums.iter_mut().enumerate() {
            for (value, sum) in sums.iter_mut().enumerate() {
                let bits = (0..4).filter(|bit| value & 8 >> bit != 0);
                *sum = bits.fold(0, |sum, bit| sum ^ window(&padded, 4 * place + bit));
            }
        }
        Self { sums }
    }

    /// The hash of `input`, of which at most [`INPUT_MAX`] bytes are taken.
    #[inline]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let (halves, _) = self.sums.as_chunks::<2>();
        let bytes = halves.iter().zip(input);
        bytes.fold(0, |sum, ([high, low], byte)| {
            sum ^ high[usize::from(byte >> 4)] ^ low[usize::from(byte & 15)]
        })
    }

    /// `XEN_NETIF_CTRL_HASH_TYPE_IPV4`: addresses in the order of the wire.
    #[inline]
    pub fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> u32 {
        let mut input = [0; 8];
        input[..4].copy_from_slice(&source);
        input[4..].copy_from_slice(&destination);
        self.hash(&input)
    }

    /// `XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP`.
    #[inline]
    pub fn ipv4_tcp(&self, source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> u32 {
        let mut input = [0; 12];
        input[..4].copy_from_slice(&source.0);
        input[4..8].copy_from_slice(&destination.0);
        input[8..10].copy_from_slice(&source.1.to_be_bytes());
        input[10..].copy_from_slice(&destination.1.to_be_bytes());
        self.hash(&input)
    }

    /// `XEN_NETIF_CTRL_HASH_TYPE_IPV6`.
    #[inline]
    pub fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> u32 {
        let mut input = [0; 32];
        input[..16].copy_from_slice(&source);
        input[16..].copy_from_slice(&destination);
        self.hash(&input)
    }

    /// `XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP`.
    #[inline]
    pub fn ipv6_tcp(&self, source: ([u8; 16], u16), destination: ([u8; 16], u16)) -> u32 {
        let mut input = [0; INPUT_MAX];
        input[..16].copy_from_slice(&source.0);
        input[16..32].copy_from_slice(&destination.0);
        input[32..34].copy_from_slice(&source.1.to_be_bytes());
        input[34..].copy_from_slice(&destination.1.to_be_bytes());
        self.hash(&input)
    }
}

/// The 32 bits of the key that begin at `bit`, counted from the most significant bit of the first byte.
fn window(key: &[u8; KEY_LEN], bit: usize) -> u32 {
    let byte = |i: usize| u64::from(key.get(bit / 8 + i).copied().unwrap_or(0));
    let forty = (0..5).fold(0, |sum, i| sum << 8 | byte(i));
    (forty << (bit % 8) >> 8) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of Microsoft's "Verifying the RSS hash calculation".
    const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn hash_of_ipv4_equals_published_vectors() {
        let hash = Toeplitz::new(&KEY);
        // destination, source, with ports, addresses alone
        for (destination, source, tcp, addresses) in [
            (([161, 142, 100, 80], 1766), ([66, 9, 149, 187], 2794), 0x51cc_c178, 0x323e_8fc2),
            (([65, 69, 140, 83], 4739), ([199, 92, 111, 2], 14230), 0xc626_b0ea, 0xd718_262a),
            (([12, 22, 207, 184], 38024), ([24, 19, 198, 95], 12898), 0x5c2b_394a, 0xd2d0_a5de),
            (([209, 142, 163, 6], 2217), ([38, 27, 205, 30], 48228), 0xafc7_327f, 0x8298_9176),
            (([202, 188, 127, 2], 1303), ([153, 39, 163, 191], 44251), 0x10e8_28a2, 0x5d18_09c5),
        ] {
            assert_eq!(hash.ipv4_tcp(source, destination), tcp);
            assert_eq!(hash.ipv4(source.0, destination.0), addresses);
        }
    }

    #[test]
    fn hash_of_ipv6_equals_published_vectors() {
        let hash = Toeplitz::new(&KEY);
        let address = |text: &str| text.parse::<core::net::Ipv6Addr>().unwrap().to_bits().to_be_bytes();
        for (destination, dport, source, sport, tcp, addresses) in [
            ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x4020_7d3d, 0x2cc1_8cd5),
            ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0xdde5_1bbf, 0x0f0c_461c),
            (
                "fe80::200:f8ff:fe21:67cf",
                38024,
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                0x02d1_feef,
                0x4b61_e985,
            ),
        ] {
            assert_eq!(hash.ipv6_tcp((address(source), sport), (address(destination), dport)), tcp);
            assert_eq!(hash.ipv6(address(source), address(destination)), addresses);
        }
    }

    #[test]
    fn short_key_is_padded_with_zeros() {
        assert_eq!(Toeplitz::new(&[0x80]).hash(&[0x80, 0xff, 0xff]), 0x8000_0000);
        assert_eq!(Toeplitz::new(&[]).hash(&[0xff; 64]), 0);
    }
}
