//! One harness for the property test and the fuzz target: clients send any requests in any order to the broker's
//! state and to its successors', and their invariants are checked after each.

use super::answer::{Answer, Effect};
use super::arena::Arena;
use super::layout::Layout;
use super::record::{Client, Role};
use super::registry::{Registry, Rules};
use super::state_file::Kept;
use super::token::Token;
use super::wire::{Failure, Reply, Request};
use ring_abi::testing::Script;
use ring_abi::{DomId, EventPort};
use std::os::fd::OwnedFd;

/// Connections at the same time.
const CLIENTS: usize = 6;
/// The user of the first half of the clients, who may control domains; the others are another user's.
const TRUSTED: u32 = 1000;

/// The decisions of a script.
struct Choices<'a>(Script<'a>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.byte()
    }

    /// Mostly numbers of domains that exist.
    fn domid(&mut self) -> DomId {
        match self.byte() {
            byte @ 0..=239 => DomId(u16::from(byte % 6)),
            byte => DomId(0x7ff0 - 0xff + u16::from(byte) - 1),
        }
    }

    fn request(&mut self) -> Option<Request> {
        Some(match self.byte() % 19 {
            0 | 1 => Request::Join(self.domid()),
            2 => Request::Control,
            3 => Request::Offer { peer: self.domid(), pages: if self.byte() & 1 == 0 { 64 } else { 128 } },
            4 => Request::Fetch(self.domid()),
            5 => Request::AllocUnbound(self.domid()),
            6 => Request::BindInterdomain { peer: self.domid(), port: EventPort(u32::from(self.byte() % 8)) },
            7 => Request::Close(EventPort(u32::from(self.byte() % 8))),
            8 => Request::Store,
            9 => {
                let uid = TRUSTED + u32::from(self.byte() & 1);
                let name = format!("d{}", self.byte() % 8);
                let domid = if self.byte() & 1 == 0 { Some(self.domid()) } else { None };
                Request::Create { uid, domid, name }
            }
            10 => Request::Destroy(self.domid()),
            11 => Request::Next(Some(self.domid())),
            12 => Request::Await { domid: self.domid(), alive: self.byte() & 1 == 0 },
            13 => Request::Retirements,
            14 => Request::RestorePort(EventPort(u32::from(self.byte() % 8))),
            15 => Request::Resumed,
            16 => Request::HasResumed(self.domid()),
            17 => Request::Rejoin { domid: self.domid(), token: Token::from_bytes([self.byte(); 16]) },
            _ => {
                let len = usize::from(self.byte() % 32);
                return Request::decode(self.0.bytes(len));
            }
        })
    }

    fn descriptor(&mut self) -> Option<OwnedFd> {
        match self.byte() % 4 {
            0 | 1 => {
                let arena = Arena::create(Layout::new(64)?).ok()?;
                arena.fd().try_clone_to_owned().ok()
            }
            2 => std::fs::File::open("/dev/null").ok().map(OwnedFd::from),
            _ => None,
        }
    }
}

/// A broker takes over: all connections are new, and members of the last one come back by their tokens, some of them.
fn succeed(script: &mut Choices<'_>, registry: &mut Registry, clients: &mut [Client], sessions: &mut u64) {
    let kept = registry.kept();
    assert_eq!(Kept::decode(&kept.encode()).as_ref(), Some(&kept), "what is kept changes when it is read");
    *registry = Registry::take_over(rules(), kept.clone());
    registry.give_tokens();
    assert_eq!(registry.kept(), kept, "what was kept is not taken over");
    for (n, client) in clients.iter_mut().enumerate() {
        *client = unauthenticated(n, sessions);
    }
    let members = kept.domains.iter().filter_map(|domain| Some((domain.domid, domain.member?)));
    for ((domid, member), client) in members.zip(clients.iter_mut()) {
        let byte = script.byte();
        // Of another user, or not at all.
        let request = Request::Rejoin { domid, token: member.token };
        if byte & 1 == 0 {
            let answer = registry.handle(client, request, None);
            let is_member = registry.member(domid) == Some(client.session);
            assert_eq!(matches!(answer.reply, Some(Reply::Done)), is_member);
        }
        if byte & 2 == 0 {
            registry.handle(client, Request::Resumed, None);
        }
    }
    if script.byte() & 1 == 0 {
        recover(registry, clients, sessions);
    }
}

/// Time is up for members that have not come back.
fn recover(registry: &mut Registry, clients: &mut [Client], sessions: &mut u64) {
    for effect in registry.give_up_all() {
        let Effect::Disconnect(session) = effect else { panic!("{effect:?}") };
        let late = clients.iter().position(|client| client.session == session).expect("its client");
        disconnect(registry, clients, late, sessions);
    }
    let (kept, _) = registry.finish_recovery();
    assert!(!registry.is_recovering() && kept <= clients.len());
}

fn rules() -> Rules {
    Rules { control_uids: vec![TRUSTED], dom0_uids: vec![TRUSTED] }
}

/// Runs a script.
///
/// # Panics
/// If an invariant of the broker's state is violated.
pub fn hostile(script: &[u8]) {
    let mut script = Choices(Script::new(script));
    let mut registry = Registry::new(rules());
    registry.give_tokens();
    let mut sessions = 0;
    let mut clients: Vec<Client> = (0..CLIENTS).map(|n| unauthenticated(n, &mut sessions)).collect();
    while !script.0.is_over() {
        let n = usize::from(script.byte()) % CLIENTS;
        let choice = script.byte();
        if choice < 24 {
            disconnect(&mut registry, &mut clients, n, &mut sessions);
        } else if choice == 255 {
            succeed(&mut script, &mut registry, &mut clients, &mut sessions);
        } else if choice == 254 && registry.has_inherited() {
            recover(&mut registry, &mut clients, &mut sessions);
        } else if let Some(request) = script.request() {
            let fd = script.descriptor();
            let before = clients[n];
            let answer = registry.handle(&mut clients[n], request.clone(), fd);
            check(&registry, &before, &clients[n], &request, &answer);
            for effect in answer.effects {
                if let Effect::Disconnect(session) = effect
                    && let Some(ended) = clients.iter().position(|client| client.session == session)
                {
                    disconnect(&mut registry, &mut clients, ended, &mut sessions);
                }
            }
        }
        registry.check();
    }
}

fn unauthenticated(n: usize, sessions: &mut u64) -> Client {
    *sessions += 1;
    let uid = if n < CLIENTS / 2 { TRUSTED } else { TRUSTED + 1 };
    Client { session: *sessions, uid, pid: n as u32, role: Role::New }
}

/// Closes a client's connection, as the broker's loop does, and opens another in its place.
fn disconnect(registry: &mut Registry, clients: &mut [Client], n: usize, sessions: &mut u64) {
    let closed = std::mem::replace(&mut clients[n], unauthenticated(n, sessions));
    if let Role::Member(domid) = closed.role
        && registry.member(domid) == Some(closed.session)
    {
        registry.leave(domid);
        assert_eq!(registry.is_alive(domid), Some(false));
    }
}

/// Checks the reply to a request.
fn check(registry: &Registry, before: &Client, after: &Client, request: &Request, answer: &Answer) {
    let no_reply = matches!(request, Request::Close(_) | Request::Await { .. });
    assert!(answer.reply.is_some() || no_reply, "no reply to {request:?}");
    let fds = match &answer.reply {
        Some(Reply::Arena(_)) => 1,
        Some(Reply::Port(_)) => 2,
        Some(Reply::Done) if matches!(request, Request::Store | Request::Retirements) => 1,
        _ => 0,
    };
    assert_eq!(answer.fds.len(), fds, "descriptors with {:?}", answer.reply);
    if matches!(answer.reply, Some(Reply::Failed(..))) {
        assert!(answer.effects.is_empty() && before.role == after.role, "refused, but with effects");
    }
    if before.role != after.role {
        assert_eq!(before.role, Role::New, "a role never changes");
    }
    match after.role {
        Role::Member(domid) if before.role == Role::New => {
            assert_eq!(registry.member(domid), Some(after.session));
        }
        Role::Controller => assert_eq!(after.uid, TRUSTED),
        _ => {}
    }
    let controls = matches!(request, Request::Create { .. } | Request::Destroy(_) | Request::Next(_));
    if controls && before.role != Role::Controller {
        assert!(matches!(
            answer.reply,
            Some(Reply::Failed(Failure::Denied | Failure::Protocol | Failure::NoDomain | Failure::Away, _))
        ));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn requests_of_any_clients_keep_the_invariants(script in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::hostile(&script);
        }
    }
}
