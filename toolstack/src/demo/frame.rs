//! The demo's frames: an Ethernet header of the type set aside for experiments, a kind, a number, and a pattern.

use super::pattern::Pattern;

/// IEEE 802's "local experimental" EtherType.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes before the pattern.
pub const HEADER: usize = 14 + 1 + 8;
/// Bytes of the shortest frame, as the wire would have it.
pub const SHORTEST: usize = 64;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Part of a stream; its number counts the stream's frames.
    Data,
    /// All of a stream up to this number has come, as it was sent.
    Ack,
    /// To be sent back.
    Ping,
    /// Sent back.
    Pong,
    /// There is nothing more to come.
    Bye,
    /// Goodbye.
    ByeBye,
}

const KINDS: [Kind; 6] = [Kind::Data, Kind::Ack, Kind::Ping, Kind::Pong, Kind::Bye, Kind::ByeBye];

/// A frame's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Who sent it.
    pub from: [u8; 6],
    /// What it is.
    pub kind: Kind,
    /// Which.
    pub number: u64,
    /// The rest.
    pub body: &'a [u8],
}

/// Writes a frame as long as `to`, which has at least [`SHORTEST`] bytes.
pub fn write(to: &mut [u8], dst: [u8; 6], src: [u8; 6], kind: Kind, number: u64, pattern: &Pattern) {
    let (header, body) = to.split_at_mut(HEADER);
    header[..6].copy_from_slice(&dst);
    header[6..12].copy_from_slice(&src);
    header[12..14].copy_from_slice(&ETHERTYPE);
    header[14] = kind as u8;
    header[15..].copy_from_slice(&number.to_le_bytes());
    pattern.fill(number, body);
}

/// Reads a frame; `None` when it is none of ours.
pub fn read(bytes: &[u8]) -> Option<Seen<'_>> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    (header[12..14] == ETHERTYPE).then_some(())?;
    let kind = *KINDS.get(usize::from(header[14]))?;
    let from = header[6..12].try_into().ok()?;
    let number = u64::from_le_bytes(header[15..].try_into().ok()?);
    Some(Seen { from, kind, number, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_and_others_are_none() {
        let pattern = Pattern::new(1);
        for (n, kind) in KINDS.into_iter().enumerate() {
            let mut bytes = [0; 100];
            write(&mut bytes, [1; 6], [2; 6], kind, n as u64, &pattern);
            let seen = read(&bytes).unwrap();
            assert_eq!((seen.from, seen.kind, seen.number), ([2; 6], kind, n as u64));
            assert!(pattern.is(n as u64, seen.body));
            bytes[13] ^= 1;
            assert_eq!(read(&bytes), None);
        }
        assert_eq!(read(&[0; 10]), None);
        assert_eq!(read(&[0x88; 80]), None);
    }
}
