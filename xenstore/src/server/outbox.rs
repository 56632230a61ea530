//! What a connection has not taken yet: replies and watch events, in order, within bounds.

use std::collections::{HashSet, VecDeque};

use ring_abi::xs_wire::MessageType;

use crate::wire::Message;

struct Packet {
    octets: Vec<u8>,
    /// An event's payload is also in `waiting`.
    event: bool,
}

#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Packet>,
    /// Octets of the first packet that are gone.
    sent: usize,
    replies: usize,
    events: usize,
    octets: usize,
    /// Payloads of the events queued: an equal one would tell nothing new.
    waiting: HashSet<Vec<u8>>,
}

impl Outbox {
    pub(super) fn reply(&mut self, message: &Message) {
        self.replies += 1;
        self.push(message.to_octets(), false);
    }

    /// Queues an event. One that waits already is not queued again, unless `special`.
    pub(super) fn event(&mut self, payload: Vec<u8>, special: bool) {
        if !special && self.waiting.contains(&payload) {
            return;
        }
        let octets = Message::new(MessageType::WatchEvent, 0, 0, payload.clone()).to_octets();
        self.waiting.insert(payload);
        self.events += 1;
        self.push(octets, true);
    }

    /// The octets to send next; empty when there are none.
    pub(super) fn front(&self) -> &[u8] {
        self.queue.front().map_or(&[], |packet| &packet.octets[self.sent..])
    }

    /// `n` octets of the front were sent.
    pub(super) fn advance(&mut self, n: usize) {
        let Some(packet) = self.queue.front() else { return };
        self.sent += n;
        if self.sent < packet.octets.len() {
            return;
        }
        self.octets -= packet.octets.len();
        if packet.event {
            self.waiting.remove(&packet.octets[ring_abi::xs_wire::HEADER_SIZE..]);
            self.events -= 1;
        } else {
            self.replies -= 1;
        }
        self.queue.pop_front();
        self.sent = 0;
    }

    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    pub(super) fn events(&self) -> usize {
        self.events
    }

    /// Octets of all packets that are not wholly sent.
    pub(super) fn octets(&self) -> usize {
        self.octets
    }

    fn push(&mut self, octets: Vec<u8>, event: bool) {
        self.octets += octets.len();
        self.queue.push_back(Packet { octets, event });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_events_wait_once_and_counts_return_to_nothing() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.event(b"/a\0t\0".to_vec(), false);
            outbox.event(b"@releaseDomain\0t\0".to_vec(), true);
        }
        outbox.reply(&Message::new(MessageType::Read, 1, 0, vec![]));
        assert_eq!((outbox.events(), outbox.replies()), (4, 1));
        while !outbox.front().is_empty() {
            outbox.advance(1);
        }
        assert_eq!((outbox.events(), outbox.replies(), outbox.octets()), (0, 0, 0));
        outbox.event(b"/a\0t\0".to_vec(), false);
        assert_eq!(outbox.events(), 1);
    }
}
