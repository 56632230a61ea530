//! Encodes messages to bytes, and decodes a stream of bytes into messages.
//!
//! The same decoder serves the client and the store. It holds at most one message and the bytes of one read, whatever
//! the peer sends: a length beyond the wire's limit is an error before anything is stored.

use std::collections::VecDeque;

use ring_abi::xs_wire::{HEADER_SIZE, Header, MessageType, PAYLOAD_MAX};

/// One message: a header and its payload; `header.len` is the payload's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header as received or to be sent.
    pub header: Header,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// Makes a message. The caller has checked that the payload is at most [`PAYLOAD_MAX`] bytes.
    pub fn new(kind: MessageType, req_id: u32, tx_id: u32, payload: Vec<u8>) -> Message {
        debug_assert!(payload.len() <= PAYLOAD_MAX);
        let header = Header { kind: kind as u32, req_id, tx_id, len: payload.len() as u32 };
        Message { header, payload }
    }

    /// The message's type; `None` for an unknown number.
    pub fn kind(&self) -> Option<MessageType> {
        MessageType::from_u32(self.header.kind)
    }

    /// The message's bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.payload.len());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// A header announces a payload longer than [`PAYLOAD_MAX`]; nothing after it can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found a payload of {0} bytes, expected at most {PAYLOAD_MAX}")]
pub struct TooLong(pub u32);

/// Decodes a stream of bytes into messages.
///
/// ```
/// use ring_abi::xs_wire::MessageType;
/// use xenstore::wire::{Decoder, Message};
///
/// let bytes = Message::new(MessageType::Read, 1, 0, b"/tool\0".to_vec()).to_bytes();
/// let mut decoder = Decoder::default();
/// decoder.push(&bytes[..20]);
/// assert_eq!(decoder.take(), Ok(None));
/// decoder.push(&bytes[20..]);
/// assert_eq!(decoder.take().unwrap().unwrap().payload, b"/tool\0");
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: VecDeque<u8>,
}

impl Decoder {
    /// Adds the bytes of one read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Number of bytes held that have not been taken as messages.
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }

    /// Whether [`Decoder::take`] returns a message or an error.
    pub fn has_message(&self) -> bool {
        let len = self.header().map(|header| header.len as usize);
        len.is_some_and(|len| len > PAYLOAD_MAX || self.bytes.len() >= HEADER_SIZE + len)
    }

    /// The next whole message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`TooLong`]: no further message can be decoded from this stream.
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

/// The NUL-terminated strings of a payload; bytes after the last NUL are left out.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = payload.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
    payload[..whole].split_inclusive(|byte| *byte == 0).map(|s| &s[..s.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_pushed_byte_by_byte_is_decoded() {
        let message = Message::new(MessageType::Read, 9, 0, b"/a\0".to_vec());
        let mut decoder = Decoder::default();
        let bytes = message.to_bytes();
        for byte in &bytes[..bytes.len() - 1] {
            decoder.push(&[*byte]);
            assert!(!decoder.has_message());
            assert_eq!(decoder.take(), Ok(None));
        }
        decoder.push(&bytes[bytes.len() - 1..]);
        assert!(decoder.has_message());
        assert_eq!(decoder.take(), Ok(Some(message)));
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn payload_length_beyond_the_limit_is_refused_from_the_header() {
        let mut decoder = Decoder::default();
        decoder.push(&Header { kind: 2, req_id: 0, tx_id: 0, len: 4097 }.to_bytes());
        assert!(decoder.has_message());
        assert_eq!(decoder.take(), Err(TooLong(4097)));
    }

    #[test]
    fn strings_are_split_at_each_nul() {
        let all = |p: &'static [u8]| strings(p).collect::<Vec<_>>();
        assert_eq!(all(b"a\0bc\0"), [b"a".as_slice(), b"bc"]);
        assert_eq!(all(b"a\0rest"), [b"a".as_slice()]);
        assert_eq!(all(b"\0\0"), [b"".as_slice(), b""]);
        assert!(all(b"none").is_empty());
    }
}
