//! Partial checksums: marks a frame as having one, and completes it.

use crate::{
    Csum, Frame, Malformed, Offload,
    checksum::Sum,
    headers::{Headers, Ip, UDP_OFFSET},
};

/// Marks a TCP or UDP frame as having a partial checksum, and writes the sum of the pseudo-header into its checksum
/// field, which must be in the frame's head. For senders that only flag a checksum as blank, as Xen's frontends do
/// (`csum_blank`).
pub fn mark_blank(frame: &mut Frame) -> Result<(), Malformed> {
    let headers = Headers::parse(frame.head()).ok_or(Malformed)?;
    let csum = headers.csum().ok_or(Malformed)?;
    if usize::from(csum.start) + usize::from(csum.offset) + 2 > frame.head().len() {
        return Err(Malformed);
    }
    let l4_len = frame.len().checked_sub(headers.l4).ok_or(Malformed)?;
    let pseudo = headers.pseudo(frame.head(), ip_payload(frame.head(), &headers, l4_len)).ok_or(Malformed)?;
    put_field(frame, csum, pseudo.partial())?;
    frame.set_offload(Offload { csum: Some(csum), ..*frame.offload() });
    Ok(())
}

/// Completes the frame's partial checksum, if it has one.
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
        // In UDP a checksum of zero means that there is none: ones'-complement zero is also 0xffff.
        [0, 0] if csum.offset == UDP_OFFSET => [0xff, 0xff],
        field => field,
    };
    put_field(frame, csum, field)?;
    frame.set_offload(Offload { csum: None, ..*frame.offload() });
    Ok(())
}

/// Writes a checksum field. Beyond the head, as an inner header's may be, the payload may be another frame's too, so that it
/// is copied first.
pub(crate) fn put_field(frame: &mut Frame, csum: Csum, bytes: [u8; 2]) -> Result<(), Malformed> {
    let at = usize::from(csum.start) + usize::from(csum.offset);
    if let Some(field) = frame.head_mut().get_mut(at..at + 2) {
        field.copy_from_slice(&bytes);
        return Ok(());
    }
    let mut whole = frame.to_vec();
    whole.get_mut(at..at + 2).ok_or(Malformed)?.copy_from_slice(&bytes);
    let offload = *frame.offload();
    *frame = Frame::from_bytes(whole.into());
    frame.set_offload(offload);
    Ok(())
}

/// The length for the pseudo-header: the IP header's, unless that is zero or more than `available` (as for GSO packets
/// too long for the length field).
fn ip_payload(head: &[u8], headers: &Headers, available: usize) -> usize {
    let (field, beyond) = match headers.ip {
        Ip::V4 => (headers.l3 + 2, headers.l4 - headers.l3),
        Ip::V6 => (headers.l3 + 4, headers.l4 - headers.l3 - 40),
    };
    let length =
        head.get(field..field + 2).map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
    length.checked_sub(beyond).filter(|len| (1..=available).contains(len)).unwrap_or(available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..140), v6: bool) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = if v6 { 0x60 } else { 0x45 };
            }
            let mut frame = Frame::from_slice(&bytes);
            if mark_blank(&mut frame).is_ok() {
                prop_assert_eq!(fill_csum(&mut frame), Ok(()));
            }
        }
    }
}
