//! Configuration of an interface.

use crate::handshake::RxChoice;

/// What an interface's user can take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Received packets may have blank checksums ([`Meta::csum_blank`](crate::Meta::csum_blank)): for users that pass them on, such as taps.
    pub csum: bool,
    /// Received packets may be unsegmented TCP of up to [`MAX_TX_SIZE`](ring_abi::netif::MAX_TX_SIZE) bytes
    /// ([`Meta::gso`](crate::Meta::gso)); needs `csum`.
    pub gso: bool,
    /// How received frames come into this domain's pages.
    pub rx: RxChoice,
    /// An event channel for each ring, where the backend offers that, instead of one for both. One costs fewer system calls,
    /// as one thread serves both rings.
    pub split_event_channels: bool,
}
