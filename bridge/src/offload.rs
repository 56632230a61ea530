//! Offloads in software: which a frame needs before a port takes it.

use crate::{
    Caps, Csum, Frame, Malformed,
    headers::{Headers, Ip, ip_start},
    segment::Segments,
};

/// What has to be done with a frame for a port.
#[derive(Debug)]
pub enum Action<'a> {
    /// It is sent unchanged.
    Send,
    /// Its checksum is completed first.
    FillChecksum,
    /// These segments are sent instead.
    Segment(Segments<'a>),
}

/// Whether a port with `caps` takes `frame` unchanged.
#[inline]
pub fn passes(frame: &Frame, caps: &Caps) -> bool {
    let offload = frame.offload();
    offload.gso.is_none_or(|gso| caps.takes_gso(gso.kind))
        && offload.csum.is_none_or(|csum| takes_csum(frame.head(), csum, caps))
}

/// Decides what has to be done with `frame` for a port with `caps`.
pub fn action<'a>(frame: &'a Frame, caps: &Caps) -> Result<Action<'a>, Malformed> {
    if passes(frame, caps) {
        return Ok(Action::Send);
    }
    match frame.offload().gso {
        Some(gso) => {
            let outermost = Headers::parse(frame.head()).and_then(|headers| headers.csum());
            let partial = outermost.is_some_and(|csum| takes_csum(frame.head(), csum, caps));
            Ok(Action::Segment(Segments::new(frame, gso, partial)?))
        }
        None => Ok(Action::FillChecksum),
    }
}

fn takes_csum(head: &[u8], csum: Csum, caps: &Caps) -> bool {
    let takes = match ip_start(head) {
        Some((Ip::V4, _)) => caps.csum_v4,
        Some((Ip::V6, _)) => caps.csum_v6,
        None => false,
    };
    takes && (caps.csum_anywhere || is_outermost(head, csum))
}

/// Whether `csum` is the checksum of the first TCP or UDP header of an untagged frame.
fn is_outermost(head: &[u8], csum: Csum) -> bool {
    Headers::parse(head).is_some_and(|headers| headers.is_untagged() && headers.csum() == Some(csum))
}

#[cfg(test)]
mod tests;
