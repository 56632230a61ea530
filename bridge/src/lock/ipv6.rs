//! IPv6 under a lock: the source is the port's, by its address or prefix or as the link-local address of its MAC address. What comes from
//! no address is neighbour discovery's and multicast listeners' (`ndp.rs`). What is for a DHCPv6 client's port is dropped.
//!
//! Extension headers are walked as Linux does (`ipv6_find_hdr`); a packet whose headers do not end in the frame's head, or in the first
//! fragment (RFC 7112), is dropped.

use super::{Addresses, Packet, ndp, owner::Owner};
use crate::{
    DropReason,
    fdb::Mac,
    headers::{UDP, be16},
};

const LEN: usize = 40;
const ICMPV6: u8 = 58;
const DHCP_CLIENT: u16 = 546;
/// Bytes that follow the extension headers of a first fragment at least: the ports, or ICMPv6's type.
const FRAGMENT_MIN: usize = 8;

pub(super) fn check(packet: Packet<'_>, mac: Mac, allowed: &Addresses) -> Result<(), DropReason> {
    let owner = Owner { mac, allowed };
    let header: &[u8; LEN] = packet.bytes.first_chunk().ok_or(DropReason::LockHeaders)?;
    let said = LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let len = if packet.is_gso { packet.len } else { said };
    if header[0] >> 4 != 6 || len > packet.len {
        return Err(DropReason::LockHeaders);
    }
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    let is_of_nobody = source == [0; 16];
    if !is_of_nobody && !owner.has(source) {
        return Err(DropReason::LockIp);
    }
    let readable = &packet.bytes[..packet.bytes.len().min(len)];
    let Some(last) = walk(readable, header[6]).ok_or(DropReason::LockHeaders)? else {
        return if is_of_nobody { Err(DropReason::LockIp) } else { Ok(()) };
    };
    let payload = &readable[last.at..];
    if last.is_fragmented && payload.len() < FRAGMENT_MIN {
        return Err(DropReason::LockHeaders);
    }
    match last.protocol {
        ICMPV6 => {
            let is_whole = len <= packet.bytes.len();
            let message =
                ndp::Message { icmp: payload, is_whole, is_fragmented: last.is_fragmented, is_of_nobody };
            ndp::check(message, owner)
        }
        _ if is_of_nobody => Err(DropReason::LockIp),
        UDP if payload.len() < 8 => Err(DropReason::LockHeaders),
        UDP if be16(payload, 2) == Some(DHCP_CLIENT) => Err(DropReason::LockDhcp),
        _ => Ok(()),
    }
}

/// The header that follows the extension headers.
struct Last {
    protocol: u8,
    at: usize,
    /// There is a fragment header before it.
    is_fragmented: bool,
}

/// Walks the extension headers from the first of them, whose protocol number is `next`. `Some(None)` is a fragment that is not the
/// first; `None` is a packet whose headers do not end in `packet`.
fn walk(packet: &[u8], next: u8) -> Option<Option<Last>> {
    let mut last = Last { protocol: next, at: LEN, is_fragmented: false };
    loop {
        let len = match last.protocol {
            0 | 43 | 60 => 8 * (1 + usize::from(*packet.get(last.at + 1)?)),
            // An authentication header counts in four bytes (RFC 4302, 2.2).
            51 => 4 * (2 + usize::from(*packet.get(last.at + 1)?)),
            44 => {
                if be16(packet, last.at + 2)? >> 3 != 0 {
                    return Some(None);
                }
                last.is_fragmented = true;
                8
            }
            _ => return Some(Some(last)),
        };
        last.protocol = packet[last.at];
        last.at += len;
        // Each has at least eight bytes, so the packet's end bounds the loop.
        if last.at > packet.len() {
            return None;
        }
    }
}
