//! What a port cannot do, done in software before a frame is sent there.

use crate::{
    Caps, Frame,
    checksum::Sum,
    headers::{Ip, Malformed, ip_start, put_field},
    segment::Segments,
};

/// Where the checksum is in a UDP header, in bytes.
pub(crate) const UDP_OFFSET: u16 = 6;

/// What has to be done to a frame before a port takes it.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing: it goes as it is.
    Pass,
    /// Its checksum is to be filled in.
    Fill,
    /// It is to be sent as these segments.
    Cut(Segments<'a>),
}

/// Whether `frame` goes to a port with `caps` just as it is.
#[inline]
pub fn passes(frame: &Frame, caps: &Caps) -> bool {
    let offload = frame.offload();
    offload.gso.is_none_or(|gso| caps.takes_gso(gso.kind))
        && offload.csum.is_none_or(|_| takes_csum(frame.head(), caps))
}

/// Decides what has to be done to `frame` for a port with `caps`.
pub fn step<'a>(frame: &'a Frame, caps: &Caps) -> Result<Step<'a>, Malformed> {
    if passes(frame, caps) {
        return Ok(Step::Pass);
    }
    match frame.offload().gso {
        Some(gso) => Ok(Step::Cut(Segments::new(frame, gso, takes_csum(frame.head(), caps))?)),
        None => Ok(Step::Fill),
    }
}

/// Fills in the checksum that is still to be done, if any.
pub fn fill_csum(frame: &mut Frame) -> Result<(), Malformed> {
    let Some(csum) = frame.offload().csum else {
        return Ok(());
    };
    if usize::from(csum.start) > frame.len() {
        return Err(Malformed);
    }
    let mut sum = Sum::default();
    sum.add_frame(frame, csum.start.into());
    let field = match sum.checksum() {
        // In UDP a checksum of zero would say that there is none; the other zero is as good.
        [0, 0] if csum.offset == UDP_OFFSET => [0xff, 0xff],
        field => field,
    };
    put_field(frame, csum, field)?;
    frame.set_offload(crate::Offload { csum: None, ..*frame.offload() });
    Ok(())
}

fn takes_csum(head: &[u8], caps: &Caps) -> bool {
    match ip_start(head) {
        Some((Ip::V4, _)) => caps.csum_v4,
        Some((Ip::V6, _)) => caps.csum_v6,
        None => false,
    }
}

#[cfg(test)]
mod tests;
