//! Whole messages out of a stream of bytes, and back.
//!
//! The same decoder serves the client and the store. It holds at most one message and what one read brought
//! in, whatever the peer sends: a length beyond the wire's limit is an error before anything is stored.

use std::collections::VecDeque;

use ring_abi::xs_wire::{HEADER_SIZE, Header, MessageType, PAYLOAD_MAX};

/// One message: a header and its payload; `header.len` is the payload's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header as it came or will go.
    pub header: Header,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message of this type; the payload must fit the wire, which the caller has checked.
    pub fn new(kind: MessageType, req_id: u32, tx_id: u32, payload: Vec<u8>) -> Message {
        debug_assert!(payload.len() <= PAYLOAD_MAX);
        let header = Header { kind: kind as u32, req_id, tx_id, len: payload.len() as u32 };
        Message { header, payload }
    }

    /// The message's type, if it is one.
    pub fn kind(&self) -> Option<MessageType> {
        MessageType::from_u32(self.header.kind)
    }

    /// The bytes that go over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.payload.len());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// The peer announced a payload longer than [`PAYLOAD_MAX`]; nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {0} bytes, the wire allows {PAYLOAD_MAX}")]
pub struct TooLong(pub u32);

/// Collects bytes until they make a message.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: VecDeque<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Bytes held that are not a message yet.
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }

    /// The next whole message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`TooLong`]: the connection is of no further use.
    pub fn take(&mut self) -> Result<Option<Message>, TooLong> {
        let Some(header) = self.header() else { return Ok(None) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(TooLong(header.len));
        }
        if self.bytes.len() < HEADER_SIZE + len {
            return Ok(None);
        }
        self.bytes.drain(..HEADER_SIZE);
        let payload = self.bytes.drain(..len).collect();
        Ok(Some(Message { header, payload }))
    }

    fn header(&self) -> Option<Header> {
        let mut bytes = [0; HEADER_SIZE];
        if self.bytes.len() < HEADER_SIZE {
            return None;
        }
        for (to, from) in bytes.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        Some(Header::from_bytes(&bytes))
    }
}

/// The strings of a payload in which each ends with a NUL; what follows the last NUL is left out.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = payload.iter().rposition(|o| *o == 0).map_or(0, |last| last + 1);
    payload[..whole].split_inclusive(|o| *o == 0).map(|s| &s[..s.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_single_bytes() {
        let message = Message::new(MessageType::Read, 9, 0, b"/a\0".to_vec());
        let mut decoder = Decoder::default();
        let bytes = message.to_bytes();
        for byte in &bytes[..bytes.len() - 1] {
            decoder.push(&[*byte]);
            assert_eq!(decoder.take(), Ok(None));
        }
        decoder.push(&bytes[bytes.len() - 1..]);
        assert_eq!(decoder.take(), Ok(Some(message)));
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn a_length_beyond_the_wire_is_refused_at_once() {
        let mut decoder = Decoder::default();
        decoder.push(&Header { kind: 2, req_id: 0, tx_id: 0, len: 4097 }.to_bytes());
        assert_eq!(decoder.take(), Err(TooLong(4097)));
    }

    #[test]
    fn strings_end_with_a_nul() {
        let all = |p: &'static [u8]| strings(p).collect::<Vec<_>>();
        assert_eq!(all(b"a\0bc\0"), [b"a".as_slice(), b"bc"]);
        assert_eq!(all(b"a\0rest"), [b"a".as_slice()]);
        assert_eq!(all(b"\0\0"), [b"".as_slice(), b""]);
        assert!(all(b"none").is_empty());
    }
}
