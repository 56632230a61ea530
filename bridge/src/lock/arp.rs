//! ARP under a lock: the sender's addresses are the port's, whichever they are in the Ethernet header (RFC 826). Of who is asked
//! for or answered nothing is said, but a probe (RFC 5227) is for an address that the port may have: others would give theirs up.

use super::{Addresses, Packet};
use crate::{DropReason, fdb::Mac, headers::be16};

/// Bytes of a packet of Ethernet and IPv4 addresses.
const LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

pub(super) fn check(packet: Packet<'_>, mac: Mac, allowed: &Addresses) -> Result<(), DropReason> {
    let arp: &[u8; LEN] = packet.bytes.first_chunk().ok_or(DropReason::LockHeaders)?;
    // Hardware Ethernet, protocol IPv4, and the lengths of their addresses.
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::LockArp);
    }
    let [s0, s1, s2, s3] = [arp[14], arp[15], arp[16], arp[17]];
    let sender = [s0, s1, s2, s3];
    let target = [arp[24], arp[25], arp[26], arp[27]];
    let may_be_its = match be16(arp, 6) {
        Some(REQUEST) if sender == [0; 4] => allowed.has_v4(target),
        Some(REQUEST | REPLY) => allowed.has_v4(sender),
        _ => false,
    };
    match may_be_its && arp[8..14] == mac.bytes() {
        true => Ok(()),
        false => Err(DropReason::LockArp),
    }
}
