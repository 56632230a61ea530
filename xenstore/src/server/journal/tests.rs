use proptest::prelude::*;
use ring_abi::xs_wire::MessageType;

use super::super::{ConnId, Core};
use super::*;
use crate::wire::Message;

/// A request of one of three clients: dom0 and two guests.
#[derive(Clone, Debug)]
struct Step {
    client: usize,
    kind: MessageType,
    payload: Vec<u8>,
    /// Whether it is made in the client's open transaction, if there is one.
    in_transaction: bool,
}

fn path() -> impl Strategy<Value = String> {
    let home = prop_oneof![Just("/local/domain/1"), Just("/local/domain/2"), Just("/tool"), Just("")];
    let name = prop_oneof![Just("a"), Just("b"), Just("deep/er"), Just("device/vbd/1/state")];
    (home, name).prop_map(|(home, name)| format!("{home}/{name}"))
}

fn step() -> impl Strategy<Value = Step> {
    use MessageType::*;
    let text = |text: String| [text.as_bytes(), b"\0"].concat();
    let guest = || 1u16..4;
    let request = prop_oneof![
        4 => (path(), "[a-z]{0,40}").prop_map(|(path, value)| (Write, format!("{path}\0{value}").into_bytes())),
        1 => path().prop_map(move |path| (Mkdir, text(path))),
        2 => path().prop_map(move |path| (Rm, text(path))),
        2 => (path(), guest(), guest()).prop_map(|(path, owner, reader)| {
            (SetPerms, format!("{path}\0n{owner}\0r{reader}\0").into_bytes())
        }),
        2 => Just((TransactionStart, b"\0".to_vec())),
        2 => any::<bool>().prop_map(|commit| (TransactionEnd, if commit { b"T\0" } else { b"F\0" }.to_vec())),
        1 => guest().prop_map(|domid| (Introduce, format!("{domid}\x001\x001\0").into_bytes())),
        1 => guest().prop_map(move |domid| (Release, text(domid.to_string()))),
        1 => (guest(), guest()).prop_map(|(one, other)| (SetTarget, format!("{one}\0{other}\0").into_bytes())),
        1 => (guest(), 1u32..2000).prop_map(|(domid, most)| (SetQuota, format!("{domid}\0nodes\0{most}\0").into_bytes())),
        1 => (1u32..2000).prop_map(|most| (SetQuota, format!("watches\0{most}\0").into_bytes())),
    ];
    let rest = (prop_oneof![3 => Just(0usize), 1 => Just(1), 1 => Just(2)], any::<bool>());
    (request, rest).prop_map(|((kind, payload), (client, in_transaction))| Step {
        client,
        kind,
        payload,
        in_transaction,
    })
}

/// A store with its clients, and what it keeps.
struct Machine {
    core: Core,
    clients: [ConnId; 3],
    transactions: [u32; 3],
    kept: Vec<u8>,
}

impl Machine {
    fn new() -> Machine {
        let mut core = Core::new(Quotas::default());
        let clients = [core.connect(), core.introduce(DomId(1)).unwrap(), core.introduce(DomId(2)).unwrap()];
        let kept = core.keep().to_bytes();
        Machine { core, clients, transactions: [0; 3], kept }
    }

    fn step(&mut self, step: &Step) {
        let client = self.clients[step.client];
        let tx = match step.kind {
            MessageType::TransactionStart => 0,
            MessageType::TransactionEnd => self.transactions[step.client],
            _ if step.in_transaction => self.transactions[step.client],
            _ => 0,
        };
        let message = Message::new(step.kind, 1, tx, step.payload.clone());
        self.core.input(client, &message.to_bytes());
        while self.core.step() {}
        let output = self.core.output(client);
        let reply: String = output.get(16..).map(|b| String::from_utf8_lossy(b).into()).unwrap_or_default();
        let reply = reply.trim_end_matches('\0').parse();
        match step.kind {
            MessageType::TransactionStart => self.transactions[step.client] = reply.unwrap_or(0),
            MessageType::TransactionEnd => self.transactions[step.client] = 0,
            _ => {}
        }
        for id in self.clients {
            let len: usize = self.core.outputs(id).map(<[u8]>::len).sum();
            self.core.sent(id, len);
        }
        self.core.take_journal(&mut self.kept);
    }
}

/// What a store holds, without the generation of its last attempt to change something, which need not be kept.
fn content(mut image: Image) -> Vec<u8> {
    image.generation = 0;
    image.to_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_kept_is_what_the_store_holds_after_every_request(steps in proptest::collection::vec(step(), 1..60)) {
        let mut machine = Machine::new();
        for step in &steps {
            machine.step(step);
            let kept = Image::decode(&machine.kept).unwrap();
            prop_assert!(kept.tree.is_consistent());
            prop_assert_eq!(content(kept.clone()), content(machine.core.image()));
            prop_assert!(kept.generation <= machine.core.image().generation);
        }
        let kept = Image::decode(&machine.kept).unwrap();
        let mut successor = Core::restore(kept, Quotas::default());
        prop_assert_eq!(content(successor.keep()), content(machine.core.image()));
    }

    #[test]
    fn any_bytes_are_refused_or_kept_as_they_are(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        super::check(&bytes);
        let mut framed = Machine::new().kept;
        frame(&mut framed, &bytes);
        super::check(&framed);
    }
}

/// A few requests of each kind, with the content of the store and the bytes kept after each.
fn history() -> (Vec<u8>, Vec<(usize, Vec<u8>)>) {
    use MessageType::*;
    let mut machine = Machine::new();
    let mut after = vec![(machine.kept.len(), content(Image::decode(&machine.kept).unwrap()))];
    for (client, kind, payload) in [
        (0, Write, &b"/local/domain/1/a\0value"[..]),
        (0, SetPerms, b"/local/domain/1/a\0n1\0r2\0"),
        (1, Write, b"a\0other"),
        (0, TransactionStart, b"\0"),
        (0, Mkdir, b"/x/y\0"),
        (0, Rm, b"/tool\0"),
        (0, TransactionEnd, b"T\0"),
        (0, SetTarget, b"1\x002\0"),
        (0, Release, b"1\0"),
        (0, SetQuota, b"nodes\x0077\0"),
    ] {
        machine.step(&Step { client, kind, payload: payload.to_vec(), in_transaction: true });
        after.push((machine.kept.len(), content(machine.core.image())));
    }
    (machine.kept, after)
}

#[test]
fn journal_cut_off_anywhere_is_the_store_after_its_last_whole_request() {
    let (kept, after) = history();
    assert!(after.windows(2).filter(|w| w[0].1 != w[1].1).count() >= 7, "the requests change the store");
    for len in 0..=kept.len() {
        let found = Image::decode(&kept[..len]).map(content);
        let whole = after.iter().rfind(|(end, _)| *end <= len).map(|(_, content)| content);
        assert!(found.as_ref() == whole, "{len} bytes");
    }
}

#[test]
fn journal_with_any_byte_changed_is_refused_or_an_earlier_store() {
    let (kept, after) = history();
    for at in 0..kept.len() {
        for flipped in [1, 0x10, 0x80] {
            let mut damaged = kept.clone();
            damaged[at] ^= flipped;
            let found = Image::decode(&damaged).map(content);
            // Only a length can make a frame look cut off, as the last one is.
            let known = |found: &Vec<u8>| after.iter().any(|(_, content)| content == found);
            assert!(found.as_ref().is_none_or(known), "byte {at} changed the store");
        }
    }
}

#[test]
fn deep_and_large_trees_are_kept() {
    let mut machine = Machine::new();
    let deep = "/a".repeat(1000);
    for number in 0..3000 {
        let payload = format!("/many/{number}\0{}", "v".repeat(50)).into_bytes();
        machine.step(&Step { client: 0, kind: MessageType::Write, payload, in_transaction: false });
    }
    let payload = format!("{deep}\0").into_bytes();
    machine.step(&Step { client: 0, kind: MessageType::Mkdir, payload, in_transaction: false });
    let image = machine.core.image().to_bytes();
    assert!(image.len() > 2 * IMAGE_FRAME);
    assert!(Image::decode(&image).map(content) == Some(content(machine.core.image())));
    assert!(Image::decode(&machine.kept).map(content) == Some(content(machine.core.image())));
}
