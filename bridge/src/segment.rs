//! Segmentation of long TCP and UDP frames in software. Segments share the payload's pages; only their headers are written.

use crate::{
    Frame, Gso, GsoKind, Malformed, Offload,
    checksum::Sum,
    headers::{Headers, Ip, TCP, UDP},
    partial_checksum::{fill_csum, put_field},
};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Smallest accepted size of TCP segments in bytes, Linux's `TCP_MIN_SND_MSS`. It bounds the number of segments of one frame
/// (about 1,400).
pub const MIN_SIZE: u16 = 48;
/// Most datagrams of one UDP frame, as in Linux (`UDP_MAX_SEGMENTS`).
const UDP_DATAGRAMS: usize = 128;
const UDP_HEADER: usize = 8;

/// The segments of one frame, made one at a time.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a Frame,
    headers: Headers,
    /// Bytes before the payload.
    header_len: usize,
    size: usize,
    /// Whether the checksum may be left partial.
    partial: bool,
    /// Bytes of payload in the segments made.
    done: usize,
    /// Number of segments made.
    count: u16,
}

impl<'a> Segments<'a> {
    /// Prepares the segmentation of `frame`, whose headers must match `gso`; with `partial` the segments' checksums
    /// stay partial.
    pub fn new(frame: &'a Frame, gso: Gso, partial: bool) -> Result<Segments<'a>, Malformed> {
        let head = frame.head();
        let headers = Headers::parse(head).ok_or(Malformed)?;
        let header_len = header_len(head, &headers, gso.kind).ok_or(Malformed)?;
        // The checksum of another header would be lost.
        let csum = frame.offload().csum;
        let is_of_these_headers = csum.is_none() || csum == headers.csum();
        let whole = header_len <= head.len() && header_len < frame.len();
        if !whole || !is_of_these_headers || !is_size_valid(gso, frame.len() - header_len) {
            return Err(Malformed);
        }
        Ok(Segments { frame, headers, header_len, size: gso.size.into(), partial, done: 0, count: 0 })
    }

    /// Writes the next segment into `into`; `false` when there are no more.
    pub fn next_into(&mut self, into: &mut Frame) -> Result<bool, Malformed> {
        let payload = self.frame.len() - self.header_len;
        if self.done >= payload {
            return Ok(false);
        }
        let len = self.size.min(payload - self.done);
        into.copy_part(self.frame, self.header_len, self.header_len + self.done, len)?;
        self.fix_ip(into.head_mut(), len);
        match self.headers.protocol {
            TCP => self.fix_tcp(into.head_mut(), self.done + len == payload),
            _ => self.fix_udp(into.head_mut(), len),
        }
        self.fix_csum(into)?;
        self.done += len;
        self.count = self.count.wrapping_add(1);
        Ok(true)
    }

    /// Number of segments that are still to be made.
    pub(crate) fn left(&self) -> u64 {
        (self.frame.len() - self.header_len - self.done).div_ceil(self.size) as u64
    }

    fn fix_ip(&self, head: &mut [u8], len: usize) {
        let Headers { ip, l3, l4, .. } = self.headers;
        let l4_len = self.header_len - l4 + len;
        match ip {
            Ip::V4 => {
                let header = &mut head[l3..l4];
                header[2..4].copy_from_slice(&((l4 - l3 + l4_len) as u16).to_be_bytes());
                let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(self.count);
                header[4..6].copy_from_slice(&id.to_be_bytes());
                header[10..12].fill(0);
                let mut sum = Sum::default();
                sum.add(header);
                header[10..12].copy_from_slice(&sum.checksum());
            }
            Ip::V6 => {
                let field = (l4 - l3 - 40 + l4_len) as u16;
                head[l3 + 4..l3 + 6].copy_from_slice(&field.to_be_bytes());
            }
        }
    }

    fn fix_tcp(&self, head: &mut [u8], last: bool) {
        let tcp = &mut head[self.headers.l4..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(self.done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[13] &= !(FIN | PSH);
        }
        if self.done > 0 {
            tcp[13] &= !CWR;
        }
    }

    fn fix_udp(&self, head: &mut [u8], len: usize) {
        let udp = &mut head[self.headers.l4..];
        udp[4..6].copy_from_slice(&((UDP_HEADER + len) as u16).to_be_bytes());
    }

    fn fix_csum(&self, segment: &mut Frame) -> Result<(), Malformed> {
        let csum = self.headers.csum().ok_or(Malformed)?;
        let pseudo = self.headers.pseudo(segment.head(), segment.len() - self.headers.l4).ok_or(Malformed)?;
        put_field(segment, csum, pseudo.partial())?;
        let verified = self.frame.offload().verified;
        segment.set_offload(Offload { csum: Some(csum), verified, gso: None });
        if self.partial { Ok(()) } else { fill_csum(segment) }
    }
}

/// Frames that a frame is on a wire: its segments.
pub(crate) fn wire_frames(frame: &Frame) -> u64 {
    on_wire(frame).1
}

/// Bytes of a frame on a wire, those of all its segments with their headers, and how many these are.
#[inline]
pub(crate) fn on_wire(frame: &Frame) -> (u64, u64) {
    let len = frame.len();
    match frame.offload().gso {
        None => (len as u64, 1),
        Some(gso) => segments_on_wire(frame, len, gso),
    }
}

fn segments_on_wire(frame: &Frame, len: usize, gso: Gso) -> (u64, u64) {
    let headers = Headers::parse(frame.head());
    let header_len = headers.and_then(|headers| header_len(frame.head(), &headers, gso.kind));
    let Some(header_len) = header_len else { return (len as u64, 1) };
    let payload = len.saturating_sub(header_len);
    let frames = payload.div_ceil(usize::from(gso.size.max(1))).max(1);
    ((len + (frames - 1) * header_len) as u64, frames as u64)
}

/// Bytes before the payload of a frame with these headers, if they are those of `kind`.
fn header_len(head: &[u8], headers: &Headers, kind: GsoKind) -> Option<usize> {
    match (kind, headers.ip, headers.protocol) {
        (GsoKind::TcpV4, Ip::V4, TCP) | (GsoKind::TcpV6, Ip::V6, TCP) => {
            let words = usize::from(head.get(headers.l4 + 12)? >> 4);
            (words >= 5).then_some(headers.l4 + words * 4)
        }
        (GsoKind::Udp, _, UDP) => Some(headers.l4 + UDP_HEADER),
        _ => None,
    }
}

/// Whether `payload` bytes may be cut by `gso`: it bounds the number of segments.
fn is_size_valid(gso: Gso, payload: usize) -> bool {
    match gso.kind {
        GsoKind::TcpV4 | GsoKind::TcpV6 => gso.size >= MIN_SIZE,
        GsoKind::Udp => gso.size > 0 && payload.div_ceil(gso.size.into()) <= UDP_DATAGRAMS,
    }
}
