//! IPv4 under a lock: the source is the port's, or none yet for DHCP's client (RFC 2131) and reports of multicast groups (RFC 3376,
//! 4.2.13). What is for a DHCP client's port is dropped: clients look at that alone, whatever port a server sends from.

use super::{Addresses, Packet};
use crate::{
    DropReason,
    headers::{TCP, UDP, be16},
};

const MIN_LEN: usize = 20;
const IGMP: u8 = 2;
/// Membership reports of IGMP's versions 1 to 3.
const IGMP_REPORTS: [u8; 3] = [0x12, 0x16, 0x22];
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Bytes of a fragment's payload at least, but the last one's: a first fragment thus has the ports.
const FRAGMENT_MIN: usize = 8;

pub(super) fn check(packet: Packet<'_>, allowed: &Addresses) -> Result<(), DropReason> {
    let header: &[u8; MIN_LEN] = packet.bytes.first_chunk().ok_or(DropReason::LockHeaders)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let said = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let len = if packet.is_gso { packet.len } else { said };
    if header[0] >> 4 != 4 || header_len < MIN_LEN || len < header_len || len > packet.len {
        return Err(DropReason::LockHeaders);
    }
    let source = [header[12], header[13], header[14], header[15]];
    let is_of_nobody = source == [0; 4];
    if !is_of_nobody && !allowed.has_v4(source) {
        return Err(DropReason::LockIp);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (offset, has_more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    if is_of_nobody && (offset != 0 || has_more) {
        return Err(DropReason::LockIp);
    }
    if offset != 0 {
        return Ok(());
    }
    let payload = packet.bytes.get(header_len..packet.bytes.len().min(len)).ok_or(DropReason::LockHeaders)?;
    if has_more && payload.len() < FRAGMENT_MIN {
        return Err(DropReason::LockHeaders);
    }
    let to = [header[16], header[17], header[18], header[19]];
    match header[9] {
        UDP => {
            let ports = (payload.len() >= 8).then(|| Some((be16(payload, 0)?, be16(payload, 2)?))).flatten();
            match ports.ok_or(DropReason::LockHeaders)? {
                (_, DHCP_CLIENT) => Err(DropReason::LockDhcp),
                (DHCP_CLIENT, DHCP_SERVER) if to == [255; 4] => Ok(()),
                _ if is_of_nobody => Err(DropReason::LockIp),
                _ => Ok(()),
            }
        }
        IGMP if is_of_nobody => {
            let is_report = payload.first().is_some_and(|kind| IGMP_REPORTS.contains(kind));
            if is_report && to[0] >> 4 == 14 { Ok(()) } else { Err(DropReason::LockIp) }
        }
        TCP if payload.len() < FRAGMENT_MIN => Err(DropReason::LockHeaders),
        _ if is_of_nobody => Err(DropReason::LockIp),
        _ => Ok(()),
    }
}
