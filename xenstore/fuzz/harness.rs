//! Hostile octets against a store: the one harness of the property test and of the fuzz target.
//!
//! The input is a script. Every step is an octet that picks a connection and an action, an octet of length, and so
//! many octets; they go in raw, or as the payload of a well-formed message, or not at all while output is taken or
//! the connection breaks and comes back. Whatever the script, the store must not panic, must hold no more than its
//! bounds, must answer every request once and in order, and must count its nodes right.

use std::collections::VecDeque;

use ring_abi::xs_wire::{MessageType, PAYLOAD_MAX};
use xenstore::server::{ConnId, Core, Quotas};
use xenstore::wire::{Decoder, Message};

/// What one domain sends and gets.
struct Peer {
    domid: u16,
    id: ConnId,
    replies: Decoder,
    /// Numbers of the well-formed requests that are not answered; `None` once raw octets have gone in.
    asked: Option<VecDeque<u32>>,
}

/// Runs a script.
pub(crate) fn run(mut script: &[u8]) {
    let mut core = Core::new(Quotas::default());
    let mut peers: Vec<Peer> = (0..4).map(|domid| Peer::new(&mut core, domid)).collect();
    let mut number = 0;
    while let [what, len, rest @ ..] = script {
        let (octets, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        script = rest;
        number += 1;
        let peer = &mut peers[usize::from(what & 3)];
        match what >> 2 {
            0 => peer.send_raw(&mut core, octets),
            1 => peer.take(&mut core, usize::from(*len)),
            2 => peer.take(&mut core, usize::MAX),
            3 => {
                core.disconnect(peer.id);
                *peer = Peer::new(&mut core, peer.domid);
            }
            4 if peer.domid != 0 => {
                let _ = core.release(peer.domid);
                *peer = Peer::new(&mut core, peer.domid);
            }
            kind => peer.ask(&mut core, u32::from(kind) % 28, number, octets),
        }
        peers.iter().for_each(|peer| peer.is_bounded(&core));
    }
    check(&mut core);
}

impl Peer {
    fn new(core: &mut Core, domid: u16) -> Peer {
        let id = if domid == 0 { core.connect() } else { core.introduce(domid).expect("a domain's number") };
        Peer { domid, id, replies: Decoder::default(), asked: Some(VecDeque::new()) }
    }

    fn send_raw(&mut self, core: &mut Core, octets: &[u8]) {
        self.asked = None;
        if core.wants_input(self.id) {
            core.input(self.id, octets);
        }
    }

    /// A well-formed message. `/` stands for itself; other octets are folded into a few names, so that paths meet.
    fn ask(&mut self, core: &mut Core, kind: u32, number: u32, octets: &[u8]) {
        if !core.wants_input(self.id) {
            return;
        }
        let tx_id = u32::from(octets.first().is_some_and(|o| o & 0x80 != 0));
        let payload: Vec<u8> = octets.iter().map(|o| fold(*o)).collect();
        let mut message = Message::new(MessageType::Read, number, tx_id, payload);
        message.header.kind = kind;
        core.input(self.id, &message.to_octets());
        if let Some(asked) = &mut self.asked {
            asked.push_back(number);
        }
    }

    /// Takes up to `most` octets of output and checks what they say.
    fn take(&mut self, core: &mut Core, mut most: usize) {
        while most > 0 && !core.output(self.id).is_empty() {
            let n = core.output(self.id).len().min(most);
            self.replies.push(&core.output(self.id)[..n]);
            core.sent(self.id, n);
            most -= n;
        }
        while let Some(reply) = self.replies.take().expect("a reply within the wire's limit") {
            match reply.kind().expect("a reply's type") {
                MessageType::WatchEvent => {
                    assert_eq!(xenstore::wire::strings(&reply.payload).count(), 2);
                }
                _ => {
                    let expected = self.asked.as_mut().map(|asked| asked.pop_front());
                    assert!(expected.is_none_or(|number| number == Some(reply.header.req_id)));
                }
            }
        }
    }

    fn is_bounded(&self, core: &Core) {
        let (input, output) = core.backlog(self.id);
        assert!(input <= 16 + 2 * PAYLOAD_MAX, "{input} octets of input held");
        let most = if self.domid == 0 { 17 << 20 } else { 2 << 20 };
        assert!(output <= most, "{output} octets of output held");
    }
}

fn fold(octet: u8) -> u8 {
    match octet & 0x7f {
        0..24 => 0,
        24..56 => b'/',
        56..64 => b'@',
        o @ 64..72 => b'0' + (o & 7),
        o => b"abnrTFw"[usize::from(o) % 7],
    }
}

fn check(core: &mut Core) {
    let id = core.connect();
    core.input(id, &Message::new(MessageType::Control, 1, 0, b"check\0".to_vec()).to_octets());
    assert!(core.output(id).ends_with(b"OK\0"), "the store's accounting is wrong");
}
