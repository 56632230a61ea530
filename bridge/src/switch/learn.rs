//! Where a frame's source is: learned, or known before.

use std::time::Duration;

use super::{BatchSummary, port::Sender};
use crate::{
    DropReason, Flag,
    fdb::{Fdb, Learned, Mac, PortId, Station},
};

/// Learns that a station, which has not the port's own address, was seen there.
#[inline]
pub(super) fn learn(
    fdb: &mut Fdb,
    station: Station,
    to: Mac,
    (from, sender): (PortId, &Sender),
    now: Duration,
    summary: &mut BatchSummary,
) -> Result<(), DropReason> {
    if !station.mac().is_station() {
        return Err(DropReason::BadSource);
    }
    if !sender.learns() {
        return check_station(fdb, station, to, (from, sender), now);
    }
    match fdb.learn(station, from, now.as_secs() as u32) {
        Learned::Sticky => Err(DropReason::Sticky),
        Learned::Moved => {
            summary.moves += 1;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Checks that a station may be at a port whose stations are not learned, or only those that are known there.
#[inline(never)]
fn check_station(
    fdb: &mut Fdb,
    station: Station,
    to: Mac,
    (from, sender): (PortId, &Sender),
    now: Duration,
) -> Result<(), DropReason> {
    let now_s = now.as_secs() as u32;
    if !sender.flags.has(Flag::Locked) {
        let is_others = fdb.owner(station, now_s).is_some_and(|owner| owner != from);
        return if is_others { Err(DropReason::Sticky) } else { Ok(()) };
    }
    if fdb.entry(station, now_s).is_some_and(|entry| entry.port == from) {
        if sender.flags.has(Flag::Learning) {
            fdb.learn(station, from, now_s);
        }
        return Ok(());
    }
    // What a station says to be let in: Linux's bridge hands such frames to its host, and this one to who asks for them.
    if to.is_reserved() { Ok(()) } else { Err(DropReason::Locked) }
}
