//! Compares the store with a simple model under random requests of several domains, inside and outside transactions.
//!
//! A transaction that commits must be serializable: its reads have the results that they would have at the time of the
//! commit. For one that fails with EAGAIN there must have been another client's change since its start.

mod model;

use std::collections::BTreeMap;

use model::{Changed, Model, Op, access};
use proptest::collection::vec;
use proptest::prelude::*;
use ring_abi::xs_wire::MessageType;
use xenstore::server::{ConnId, Core, Quotas};
use xenstore::wire::{Decoder, Message};
use xenstore::{Access, DomId, Permission, XsError};

#[derive(Clone, Debug)]
enum Action {
    Do(Op),
    Start,
    End(bool),
}

/// An action of one connection in one of its transactions (`slot` 0 is none).
#[derive(Clone, Debug)]
struct Step {
    peer: usize,
    slot: u8,
    action: Action,
}

fn path() -> impl Strategy<Value = String> {
    vec(prop::sample::select(vec!["a", "b", "c"]), 0..4).prop_map(|names| match names.is_empty() {
        true => "/".to_owned(),
        false => names.iter().map(|n| format!("/{n}")).collect(),
    })
}

fn perms() -> impl Strategy<Value = Vec<Permission>> {
    let access = prop::sample::select(vec![Access::None, Access::Read, Access::Write, Access::Both]);
    vec((0..3u16, access).prop_map(|(domid, access)| Permission::new(DomId(domid), access)), 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => path().prop_map(Op::Read),
        2 => path().prop_map(Op::Directory),
        1 => path().prop_map(Op::GetPerms),
        4 => (path(), any::<u8>()).prop_map(|(p, v)| Op::Write(p, v)),
        2 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rm),
        2 => (path(), perms()).prop_map(|(p, l)| Op::SetPerms(p, l)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let action = prop_oneof![
        8 => op().prop_map(Action::Do),
        2 => Just(Action::Start),
        2 => prop::bool::weighted(0.9).prop_map(Action::End),
    ];
    (0..4usize, 0..3u8, action).prop_map(|(peer, slot, action)| Step { peer, slot, action })
}

/// An open transaction in the model.
struct Open {
    id: u32,
    view: Model,
    began: u64,
    done: Vec<(Op, Vec<u8>)>,
}

struct Harness {
    core: Core,
    peers: Vec<(ConnId, DomId)>,
    model: Model,
    /// Counts changes to the model.
    version: u64,
    open: BTreeMap<(usize, u8), Open>,
    /// Connection, domain and path of each watch, and the events expected since they were last checked.
    watchers: Vec<(ConnId, DomId, &'static str, Vec<String>)>,
}

impl Harness {
    fn new() -> Harness {
        let mut core = Core::new(Quotas::default());
        let peers = vec![
            (core.connect(), DomId::DOM0),
            (core.connect(), DomId::DOM0),
            (core.introduce(DomId(1)).unwrap(), DomId(1)),
            (core.introduce(DomId(2)).unwrap(), DomId(2)),
        ];
        let watchers =
            vec![(core.connect(), DomId::DOM0, "/"), (core.introduce(DomId(3)).unwrap(), DomId(3), "/a/b")];
        let mut harness = Harness {
            core,
            peers,
            model: Model::new(),
            version: 0,
            open: BTreeMap::new(),
            watchers: watchers.into_iter().map(|(id, domid, path)| (id, domid, path, Vec::new())).collect(),
        };
        for (id, _, path, _) in &harness.watchers {
            harness.core.input(*id, &message(MessageType::Watch, 0, format!("{path}\0t\0").into_bytes()));
            while harness.core.step() {}
            drain(&mut harness.core, *id);
        }
        harness
    }

    fn exchange(
        &mut self,
        peer: usize,
        kind: MessageType,
        tx: u32,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, XsError> {
        let id = self.peers[peer].0;
        self.core.input(id, &message(kind, tx, payload));
        while self.core.step() {}
        let replies = drain(&mut self.core, id);
        assert_eq!(replies.len(), 1);
        let reply = replies.into_iter().next().unwrap();
        match reply.kind() {
            Some(MessageType::Error) => {
                let name = std::str::from_utf8(reply.payload.strip_suffix(b"\0").unwrap()).unwrap();
                Err(XsError::from_name(name).unwrap())
            }
            got => {
                assert_eq!(got, Some(kind));
                Ok(reply.payload)
            }
        }
    }

    fn step(&mut self, step: Step) {
        let key = (step.peer, step.slot);
        match step.action {
            Action::Do(op) if self.open.contains_key(&key) => self.within(key, &op),
            Action::Do(op) => self.outside(step.peer, &op),
            Action::Start if step.slot > 0 && !self.open.contains_key(&key) => self.start(key),
            Action::End(commit) if self.open.contains_key(&key) => self.end(key, commit),
            Action::Start | Action::End(_) => {}
        }
        self.check_events();
    }

    fn outside(&mut self, peer: usize, op: &Op) {
        let got = self.request(peer, 0, op);
        let expected = self.model.apply(self.peers[peer].1, op);
        match expected {
            Ok((payload, changed)) => {
                assert_eq!(got, Ok(payload), "{op:?}");
                self.expect_events(changed);
            }
            Err(e) => assert_eq!(got, Err(e), "{op:?}"),
        }
    }

    fn within(&mut self, key: (usize, u8), op: &Op) {
        let id = self.open[&key].id;
        let got = self.request(key.0, id, op);
        let domid = self.peers[key.0].1;
        let open = self.open.get_mut(&key).unwrap();
        let expected = open.view.apply(domid, op).map(|(payload, _)| payload);
        assert_eq!(got, expected, "in a transaction: {op:?}");
        open.done.extend(got.ok().map(|payload| (op.clone(), payload)));
    }

    fn start(&mut self, key: (usize, u8)) {
        let reply = self.exchange(key.0, MessageType::TransactionStart, 0, vec![0]).unwrap();
        let id = std::str::from_utf8(reply.strip_suffix(b"\0").unwrap()).unwrap().parse().unwrap();
        let open = Open { id, view: self.model.clone(), began: self.version, done: Vec::new() };
        self.open.insert(key, open);
    }

    fn end(&mut self, key: (usize, u8), commit: bool) {
        let open = self.open.remove(&key).unwrap();
        let end = if commit { b"T\0" } else { b"F\0" };
        let got = self.exchange(key.0, MessageType::TransactionEnd, open.id, end.to_vec());
        if got == Err(XsError::EAGAIN) {
            assert!(commit && self.version != open.began, "EAGAIN without another client's change");
            return;
        }
        assert_eq!(got, Ok(b"OK\0".to_vec()));
        if commit {
            for (op, payload) in open.done {
                let (now, changed) = self.model.apply(self.peers[key.0].1, &op).expect("was possible");
                assert_eq!(now, payload, "not serializable: {op:?}");
                self.expect_events(changed);
            }
        }
    }

    fn request(&mut self, peer: usize, tx: u32, op: &Op) -> Result<Vec<u8>, XsError> {
        let one = |path: &str| format!("{path}\0").into_bytes();
        let (kind, payload) = match op {
            Op::Read(path) => (MessageType::Read, one(path)),
            Op::Directory(path) => (MessageType::Directory, one(path)),
            Op::GetPerms(path) => (MessageType::GetPerms, one(path)),
            Op::Write(path, value) => (MessageType::Write, [one(path), vec![*value]].concat()),
            Op::Mkdir(path) => (MessageType::Mkdir, one(path)),
            Op::Rm(path) => (MessageType::Rm, one(path)),
            Op::SetPerms(path, perms) => {
                let list = perms.iter().flat_map(|p| one(&p.to_string()));
                (MessageType::SetPerms, one(path).into_iter().chain(list).collect())
            }
        };
        self.exchange(peer, kind, tx, payload)
    }

    /// Adds the events that a change fires to those expected.
    fn expect_events(&mut self, changed: Option<Changed>) {
        let Some(changed) = changed else { return };
        self.version += 1;
        for (_, domid, watched, expected) in &mut self.watchers {
            let reads = |lists: &[Vec<Permission>]| lists.iter().any(|l| access(*domid, l).reads());
            let below =
                |path: &str, top: &str| top == "/" || path == top || path.starts_with(&format!("{top}/"));
            let fired = match &changed.removed {
                _ if below(&changed.path, watched) => reads(&changed.lists).then(|| changed.path.clone()),
                Some(before) if below(watched, &changed.path) && before.exists(watched) => {
                    reads(&before.lists(watched)).then(|| (*watched).to_owned())
                }
                _ => None,
            };
            // An equal unread event is merged.
            expected.extend(fired.filter(|path| !expected.contains(path)));
        }
    }

    fn check_events(&mut self) {
        for (id, _, _, expected) in &mut self.watchers {
            let got = drain(&mut self.core, *id);
            let got: Vec<String> = got
                .iter()
                .map(|m| String::from_utf8(m.payload.strip_suffix(b"\0t\0").unwrap().to_vec()).unwrap())
                .collect();
            assert_eq!(got, std::mem::take(expected));
        }
    }
}

fn message(kind: MessageType, tx: u32, payload: Vec<u8>) -> Vec<u8> {
    Message::new(kind, 1, tx, payload).to_bytes()
}

fn drain(core: &mut Core, id: ConnId) -> Vec<Message> {
    let mut decoder = Decoder::default();
    while !core.output(id).is_empty() {
        decoder.push(core.output(id));
        core.sent(id, core.output(id).len());
    }
    std::iter::from_fn(|| decoder.take().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn store_and_model_give_the_same_replies_and_events(steps in vec(step(), 0..120)) {
        let mut harness = Harness::new();
        // Lets guests create nodes from the start.
        let open = Op::SetPerms("/".into(), vec![Permission::new(DomId(0), Access::Both)]);
        harness.outside(0, &open);
        harness.check_events();
        for step in steps {
            harness.step(step);
        }
    }
}
