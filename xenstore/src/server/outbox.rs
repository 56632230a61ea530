//! The unsent replies and watch events of a connection, in order.

use std::collections::{HashSet, VecDeque};

use ring_abi::xs_wire::MessageType;

use crate::wire::Message;

struct Packet {
    bytes: Vec<u8>,
    /// A watch event, whose payload is also in `queued_events`.
    event: bool,
}

#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Packet>,
    /// Bytes of the first packet that were sent.
    sent: usize,
    replies: usize,
    events: usize,
    bytes: usize,
    /// Payloads of the queued events, with which equal ones are merged.
    queued_events: HashSet<Vec<u8>>,
}

impl Outbox {
    pub(super) fn reply(&mut self, message: &Message) {
        self.replies += 1;
        self.push(message.to_bytes(), false);
    }

    /// Queues an event, unless an equal one is queued and it is not `special`.
    pub(super) fn event(&mut self, payload: Vec<u8>, special: bool) {
        if !special && self.queued_events.contains(&payload) {
            return;
        }
        let bytes = Message::new(MessageType::WatchEvent, 0, 0, payload.clone()).to_bytes();
        self.queued_events.insert(payload);
        self.events += 1;
        self.push(bytes, true);
    }

    /// The bytes to send, in order; none is empty.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let skipped = |(n, packet)| -> &[u8] {
            let packet: &Packet = packet;
            &packet.bytes[if n == 0 { self.sent } else { 0 }..]
        };
        self.queue.iter().enumerate().map(skipped)
    }

    /// Removes the first `n` bytes of [`Outbox::parts`], which were sent.
    pub(super) fn advance(&mut self, n: usize) {
        self.sent += n;
        while self.queue.front().is_some_and(|packet| packet.bytes.len() <= self.sent) {
            let Some(packet) = self.queue.pop_front() else { return };
            self.sent -= packet.bytes.len();
            self.bytes -= packet.bytes.len();
            if packet.event {
                self.queued_events.remove(&packet.bytes[ring_abi::xs_wire::HEADER_SIZE..]);
                self.events -= 1;
            } else {
                self.replies -= 1;
            }
        }
        if self.queue.is_empty() {
            self.sent = 0;
        }
    }

    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// Bytes of all packets that are not completely sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, bytes: Vec<u8>, event: bool) {
        self.bytes += bytes.len();
        self.queue.push_back(Packet { bytes, event });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_events_are_queued_once_and_counts_return_to_zero() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.event(b"/a\0t\0".to_vec(), false);
            outbox.event(b"@releaseDomain\0t\0".to_vec(), true);
        }
        outbox.reply(&Message::new(MessageType::Read, 1, 0, vec![]));
        assert_eq!((outbox.events(), outbox.replies()), (4, 1));
        let bytes: usize = outbox.parts().map(<[u8]>::len).sum();
        assert_eq!(bytes, outbox.bytes());
        outbox.advance(20);
        for _ in 20..bytes - 40 {
            outbox.advance(1);
        }
        outbox.advance(40);
        assert_eq!((outbox.events(), outbox.replies(), outbox.bytes()), (0, 0, 0));
        outbox.event(b"/a\0t\0".to_vec(), false);
        assert_eq!(outbox.events(), 1);
    }
}
