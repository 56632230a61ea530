//! The demo's frames: an Ethernet header with the experimental EtherType, a kind, a number, and a pattern.

use super::pattern::Pattern;

/// The EtherType "Local Experimental 1" of IEEE 802.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of a frame before the pattern.
pub const HEADER: usize = 14 + 1 + 8;
/// Bytes of the shortest Ethernet frame.
pub const SHORTEST: usize = 64;

/// The kinds of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frame of a stream; the number counts the stream's frames.
    Data,
    /// Acknowledges all frames of a stream below the number.
    Ack,
    /// Requests a [`Kind::Pong`] with the same number.
    Ping,
    /// Answers a [`Kind::Ping`].
    Pong,
    /// The sender has finished.
    Finish,
    /// Answers a [`Kind::Finish`].
    FinishAck,
}

const KINDS: [Kind; 6] = [Kind::Data, Kind::Ack, Kind::Ping, Kind::Pong, Kind::Finish, Kind::FinishAck];

/// A parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The sender's MAC address.
    pub from: [u8; 6],
    /// The frame's kind.
    pub kind: Kind,
    /// The frame's number.
    pub number: u64,
    /// The frame's pattern.
    pub body: &'a [u8],
}

/// Fills `to`, of at least [`SHORTEST`] bytes, with a frame.
pub fn write(to: &mut [u8], dst: [u8; 6], src: [u8; 6], kind: Kind, number: u64, pattern: &Pattern) {
    let (header, body) = to.split_at_mut(HEADER);
    header[..6].copy_from_slice(&dst);
    header[6..12].copy_from_slice(&src);
    header[12..14].copy_from_slice(&ETHERTYPE);
    header[14] = kind as u8;
    header[15..].copy_from_slice(&number.to_le_bytes());
    pattern.fill(number, body);
}

/// Parses a frame; `None` if it is not one of the demo's.
pub fn read(bytes: &[u8]) -> Option<Frame<'_>> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    (header[12..14] == ETHERTYPE).then_some(())?;
    let kind = *KINDS.get(usize::from(header[14]))?;
    let from = header[6..12].try_into().ok()?;
    let number = u64::from_le_bytes(header[15..].try_into().ok()?);
    Some(Frame { from, kind, number, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_frames_are_parsed_and_others_are_not() {
        let pattern = Pattern::new(1);
        for (n, kind) in KINDS.into_iter().enumerate() {
            let mut bytes = [0; 100];
            write(&mut bytes, [1; 6], [2; 6], kind, n as u64, &pattern);
            let frame = read(&bytes).unwrap();
            assert_eq!((frame.from, frame.kind, frame.number), ([2; 6], kind, n as u64));
            assert!(pattern.matches(n as u64, frame.body));
            bytes[13] ^= 1;
            assert_eq!(read(&bytes), None);
        }
        assert_eq!(read(&[0; 10]), None);
        assert_eq!(read(&[0x88; 80]), None);
    }
}
