//! Sends hostile bytes to a store: the harness of the property test and of the fuzz target.
//!
//! The input is a script of steps: a byte that selects a connection and an action, a byte of length, and so many bytes.
//! The action sends the bytes raw, makes a well-formed request of them, takes output, or closes the connection and
//! opens it again. Whatever the script, the store must not panic, must keep its bounds on memory, must reply to every
//! request once and in order, and must count its nodes correctly.

use std::collections::VecDeque;

use ring_abi::testing::Script;
use ring_abi::xs_wire::{Header, MessageType, PAYLOAD_MAX};
use xenstore::DomId;
use xenstore::server::{ConnId, Core, Quotas};
use xenstore::wire::{Decoder, Message};

/// One domain's connection.
struct Peer {
    domid: DomId,
    id: ConnId,
    replies: Decoder,
    /// Numbers of the well-formed requests without a reply; `None` once raw bytes have been sent.
    pending: Option<VecDeque<u32>>,
}

/// Runs a script.
pub(crate) fn run(mut script: &[u8]) {
    let mut core = Core::new(Quotas::default());
    let mut peers: Vec<Peer> = (0..4).map(|domid| Peer::new(&mut core, DomId(domid))).collect();
    let mut number = 0;
    while let [what, len, rest @ ..] = script {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        script = rest;
        number += 1;
        let peer = &mut peers[usize::from(what & 3)];
        match what >> 2 {
            0 => peer.send_raw(&mut core, bytes),
            1 => peer.take(&mut core, usize::from(*len)),
            2 => peer.take(&mut core, usize::MAX),
            3 => {
                core.disconnect(peer.id);
                *peer = Peer::new(&mut core, peer.domid);
            }
            4 if peer.domid != DomId::DOM0 => {
                let _ = core.release(peer.domid);
                *peer = Peer::new(&mut core, peer.domid);
            }
            5 => peer.send_overlong(&mut core, bytes),
            kind => peer.request(&mut core, u32::from(kind) % 28, number, bytes),
        }
        peers.iter().for_each(|peer| peer.is_bounded(&core));
    }
    check(&mut core);
}

impl Peer {
    fn new(core: &mut Core, domid: DomId) -> Peer {
        let id = if domid == DomId::DOM0 {
            core.connect()
        } else {
            core.introduce(domid).expect("a domain's number")
        };
        Peer { domid, id, replies: Decoder::default(), pending: Some(VecDeque::new()) }
    }

    fn send_raw(&mut self, core: &mut Core, bytes: &[u8]) {
        self.pending = None;
        if core.wants_input(self.id) {
            input(core, self.id, bytes);
        }
    }

    /// A header that announces more than the wire allows ends the connection.
    fn send_overlong(&mut self, core: &mut Core, bytes: &[u8]) {
        if self.pending.is_none() || !core.wants_input(self.id) {
            return;
        }
        let len =
            bytes.iter().fold(4097u32, |len, byte| len.saturating_mul(2).saturating_add((*byte).into()));
        input(core, self.id, &Header { kind: 2, req_id: 0, tx_id: 0, len }.to_bytes());
        assert!(core.closed(self.id), "{len} bytes of payload are not refused");
    }

    fn request(&mut self, core: &mut Core, kind: u32, number: u32, bytes: &[u8]) {
        if !core.wants_input(self.id) {
            return;
        }
        let mut choices = Choices(Script::new(bytes));
        let tx_id = if choices.next() & 1 == 0 { 0 } else { u32::from(choices.next() % 4) };
        let mut payload = payload(kind, &mut choices);
        payload.truncate(PAYLOAD_MAX);
        let mut message = Message::new(MessageType::Read, number, tx_id, payload);
        message.header.kind = kind;
        input(core, self.id, &message.to_bytes());
        if let Some(pending) = &mut self.pending {
            pending.push_back(number);
        }
    }

    /// Takes up to `most` bytes of output and checks the replies and events in them.
    fn take(&mut self, core: &mut Core, mut most: usize) {
        while most > 0 && !core.output(self.id).is_empty() {
            let n = core.output(self.id).len().min(most);
            self.replies.push(&core.output(self.id)[..n]);
            core.sent(self.id, n);
            while core.step() {}
            most -= n;
        }
        while let Some(reply) = self.replies.take().expect("a reply within the wire's limit") {
            match reply.kind().expect("a reply's type") {
                MessageType::WatchEvent => {
                    assert_eq!(xenstore::wire::strings(&reply.payload).count(), 2);
                }
                _ => {
                    let expected = self.pending.as_mut().map(|pending| pending.pop_front());
                    assert!(expected.is_none_or(|number| number == Some(reply.header.req_id)));
                }
            }
        }
    }

    fn is_bounded(&self, core: &Core) {
        let (input, output) = core.backlog(self.id);
        assert!(input <= 16 + 2 * PAYLOAD_MAX, "{input} bytes of input held");
        let most = if self.domid == DomId::DOM0 { 17 << 20 } else { 2 << 20 };
        assert!(output <= most, "{output} bytes of output held");
    }
}

/// Bytes of a step as choices.
struct Choices<'s>(Script<'s>);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.0.byte()
    }

    fn path(&mut self) -> String {
        /// Few, so that requests often have the same path, and every kind of malformed path.
        const PATHS: [&str; 16] = [
            "/",
            "/a",
            "/a/b",
            "/a/b/c",
            "/d",
            "a",
            "b/c",
            "@releaseDomain",
            "@introduceDomain",
            "/local/domain/1",
            "/local/domain/2/a",
            "/tool/xenstored",
            "",
            "//",
            "/a/",
            "@none",
        ];
        match self.next() {
            255 => "/x".repeat(1 + usize::from(self.next()) * 8),
            n => PATHS[usize::from(n) % PATHS.len()].to_owned(),
        }
    }

    fn domid(&mut self) -> u8 {
        self.next() % 5
    }

    fn perms(&mut self) -> String {
        let letters = ["n", "r", "w", "b"];
        let one = |n: u8| format!("{}{}\0", letters[usize::from(n & 3)], n >> 2 & 3);
        (0..=self.next() % 7).map(|_| one(self.next())).collect()
    }
}

fn payload(kind: u32, c: &mut Choices<'_>) -> Vec<u8> {
    use MessageType::*;
    let text = match MessageType::from_u32(kind) {
        Some(Read | Directory | GetPerms | Mkdir | Rm) => format!("{}\0", c.path()),
        Some(Write) => format!("{}\0{}", c.path(), "v".repeat(usize::from(c.next()) * 9)),
        Some(SetPerms) => format!("{}\0{}", c.path(), c.perms()),
        Some(Watch | Unwatch) => format!("{}\0{}\0", c.path(), c.next() % 8),
        Some(DirectoryPart) => format!("{}\0{}\0", c.path(), c.next()),
        Some(TransactionEnd) => ["T\0", "F\0"][usize::from(c.next() % 2)].to_owned(),
        Some(Introduce) => format!("{}\01\01\0", c.domid()),
        Some(Release | GetDomainPath | IsDomainIntroduced | Resume | GetFeature) => {
            format!("{}\0", c.domid())
        }
        Some(SetTarget | SetFeature) => format!("{}\0{}\0", c.domid(), c.domid()),
        Some(SetQuota) => format!("{}\0nodes\0{}\0", c.domid(), c.next()),
        _ => return c.0.rest().to_vec(),
    };
    text.into_bytes()
}

/// Passes bytes to the store and has it execute what they complete.
fn input(core: &mut Core, id: ConnId, bytes: &[u8]) {
    core.input(id, bytes);
    while core.step() {}
}

fn check(core: &mut Core) {
    let id = core.connect();
    input(core, id, &Message::new(MessageType::Control, 1, 0, b"check\0".to_vec()).to_bytes());
    assert!(core.output(id).ends_with(b"OK\0"), "the store's accounting is wrong");
}
