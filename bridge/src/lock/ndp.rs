//! ICMPv6 under a lock: neighbour discovery (RFC 4861) says of the port's addresses alone that they are at its MAC address, and no router's
//! messages pass. Its messages, and multicast listeners', are not fragmented (RFC 6980).

use super::owner::Owner;
use crate::DropReason;

/// A multicast listener's report of version 1, its end, and the report of version 2 (RFC 2710, RFC 3810). From no address they are
/// right while a port's own is tested (RFC 3590).
const LISTENER: [u8; 3] = [131, 132, 143];
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// The options with a MAC address: of the source, and of the target.
const LINK_LAYER: [u8; 2] = [1, 2];

/// An ICMPv6 message.
pub(super) struct Message<'a> {
    /// As far as it can be read.
    pub(super) icmp: &'a [u8],
    /// That is all.
    pub(super) is_whole: bool,
    /// There is a fragment header before it.
    pub(super) is_fragmented: bool,
    /// Its source is the unspecified address.
    pub(super) is_of_nobody: bool,
}

pub(super) fn check(message: Message<'_>, owner: Owner<'_>) -> Result<(), DropReason> {
    let kind = *message.icmp.first().ok_or(DropReason::LockHeaders)?;
    let is_whole = !message.is_fragmented;
    match kind {
        ROUTER_ADVERTISEMENT | REDIRECT => Err(DropReason::LockRouter),
        130..=132 | 143 if !is_whole => Err(DropReason::LockNdp),
        _ if LISTENER.contains(&kind) => Ok(()),
        ROUTER_SOLICITATION if is_whole => options(&message, 8, owner),
        NEIGHBOUR_SOLICITATION if is_whole && !message.is_of_nobody => {
            target(message.icmp)?;
            options(&message, 24, owner)
        }
        // A test whether another has the address, which who has it gives up: it is for one that the port may have.
        NEIGHBOUR_SOLICITATION if is_whole => {
            may_be_its(owner, message.icmp)?;
            options(&message, 24, owner)
        }
        NEIGHBOUR_ADVERTISEMENT if is_whole && !message.is_of_nobody => {
            may_be_its(owner, message.icmp)?;
            options(&message, 24, owner)
        }
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => Err(DropReason::LockNdp),
        _ if message.is_of_nobody => Err(DropReason::LockIp),
        _ => Ok(()),
    }
}

fn target(icmp: &[u8]) -> Result<[u8; 16], DropReason> {
    icmp.get(8..).and_then(|rest| rest.first_chunk()).copied().ok_or(DropReason::LockHeaders)
}

fn may_be_its(owner: Owner<'_>, icmp: &[u8]) -> Result<(), DropReason> {
    if owner.has(target(icmp)?) { Ok(()) } else { Err(DropReason::LockNdp) }
}

/// Checks the options from `at` on, all of which must be there to be read.
fn options(message: &Message<'_>, at: usize, owner: Owner<'_>) -> Result<(), DropReason> {
    let mut rest = message.icmp.get(at..).filter(|_| message.is_whole).ok_or(DropReason::LockHeaders)?;
    while let [kind, units, ..] = *rest {
        let (option, after) = rest
            .split_at_checked(8 * usize::from(units))
            .filter(|_| units > 0)
            .ok_or(DropReason::LockHeaders)?;
        if LINK_LAYER.contains(&kind) && option[2..8] != owner.mac.bytes() {
            return Err(DropReason::LockNdp);
        }
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(DropReason::LockHeaders) }
}
