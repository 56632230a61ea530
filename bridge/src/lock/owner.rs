//! The port that IPv6 packets come from: its MAC address, and the addresses that it may have.

use super::Addresses;
use crate::fdb::Mac;

/// Whose a port's IPv6 packets may be.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) mac: Mac,
    pub(super) allowed: &'a Addresses,
}

impl Owner<'_> {
    pub(super) fn has(&self, address: [u8; 16]) -> bool {
        address == link_local(self.mac) || self.allowed.has_v6(address)
    }
}

/// The link-local address of a MAC address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac.bytes();
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}
