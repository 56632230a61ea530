//! A broker that is gone without having been stopped, and its successor: members go on, and nobody else gets what is theirs.

use super::death::Process;
use super::{TIMEOUT, byte, readable};
use event_channel::EventChannels;
use event_loop::Connector;
use grant_table::{Access, GrantTable};
use hypervisor::Error;
use hypervisor::local::internals::{Reply, Request, Token};
use hypervisor::local::{Broker, BrokerConfig, Control, Domain};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use ring_abi::{DomId, EventPort, GrantRef};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const DOM0: DomId = DomId::DOM0;
const ONE: DomId = DomId(1);
const TWO: DomId = DomId(2);

fn broker(dir: &Path) -> Broker {
    let succession: Option<hypervisor::local::MayTakeOver> = Some(Box::new(|| true));
    Broker::spawn(BrokerConfig { succession, ..BrokerConfig::new(dir) }).expect("a broker")
}

/// A machine of two guests and domain 0 whose broker is to be succeeded.
struct Machine {
    dir: tempfile::TempDir,
    broker: Option<Broker>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let machine = Self { broker: Some(broker(dir.path())), dir };
        for name in ["one", "two"] {
            machine.control().create(name, nix::unistd::getuid().as_raw(), None).expect("create");
        }
        machine
    }

    fn control(&self) -> Control {
        Control::connect(self.dir.path()).expect("control")
    }

    fn join(&self, domid: DomId) -> Arc<Domain> {
        Arc::new(Domain::join(self.dir.path(), domid).expect("join"))
    }

    /// The broker goes, as if killed.
    fn lose(&mut self) {
        self.broker.take().expect("a broker").hand_over();
    }

    fn succeed(&mut self) {
        self.broker = Some(broker(self.dir.path()));
        assert!(self.broker.as_ref().expect("a broker").has_taken_over());
    }
}

fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_true() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// Joins as a domain; the connection stays open.
pub(crate) fn join_silently(dir: &Path, domid: DomId) -> OwnedFd {
    let (connection, reply) = open(dir, &Request::Join(domid));
    assert!(matches!(reply, Some(Reply::Joined(_))), "{reply:?}");
    connection
}

fn ask(dir: &Path, request: &Request) -> Option<Reply> {
    open(dir, request).1
}

/// A client that speaks the protocol itself.
fn open(dir: &Path, request: &Request) -> (OwnedFd, Option<Reply>) {
    let fd: OwnedFd =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    let address = UnixAddr::new(&dir.join("broker.sock")).expect("address");
    connect(fd.as_raw_fd(), &address).expect("connect");
    send(fd.as_raw_fd(), &request.encode(), MsgFlags::MSG_NOSIGNAL).expect("send");
    let mut bytes = [0; 300];
    let len = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()).expect("receive");
    (fd, Reply::decode(&bytes[..len]))
}

#[test]
fn members_go_on_at_a_successor_with_all_that_they_had() {
    let mut machine = Machine::new();
    let dom0 = machine.join(DOM0);
    let guest = machine.join(ONE);
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let mapping = dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map");
    let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let bound = dom0.bind_interdomain(ONE, channel.port()).expect("bind_interdomain");
    assert!(bound.take().expect("take"));
    for round in 1..=20 {
        machine.lose();
        shared.slice(0, 1).expect("inside").copy_from(&[round][..]);
        channel.notify().expect("an event needs no broker");
        assert!(readable(&*bound) && bound.take().expect("take"));
        assert_eq!(byte(mapping.slice(0, 0, 1)), round);
        machine.succeed();
        let listed = machine.control().list().expect("list");
        let pids: Vec<_> = listed.iter().map(|domain| (domain.name.as_str(), domain.pid.is_some())).collect();
        assert_eq!(pids, [("Domain-0", true), ("one", true), ("two", false)]);
        // The arena is the same, and a domain that had not fetched it can.
        let more = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
        drop(dom0.map(ONE, more.refs(), Access::ReadWrite).expect("map"));
        let other = guest.alloc_unbound(DOM0).expect("alloc_unbound");
        assert_ne!(other.port(), channel.port(), "a port in use was given once more");
        let other_bound = dom0.bind_interdomain(ONE, other.port()).expect("bind_interdomain");
        drop(other);
        assert!(readable(&*other_bound));
    }
    drop((bound, channel));
    machine.control().destroy(ONE).expect("destroy");
    let ended = || matches!(guest.alloc_unbound(DOM0), Err(event_channel::Error::Closed));
    eventually("a destroyed domain's membership goes on", ended);
}

#[test]
fn arena_is_fetched_from_a_successor_by_one_that_had_not_fetched_it() {
    let mut machine = Machine::new();
    let dom0 = machine.join(DOM0);
    let guest = machine.join(ONE);
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    machine.lose();
    // Waits for the successor.
    std::thread::scope(|scope| {
        let mapped = scope.spawn(|| dom0.map(ONE, shared.refs(), Access::ReadWrite).map(drop));
        machine.succeed();
        mapped.join().expect("no panic").expect("map");
    });
}

#[test]
fn port_that_no_peer_had_bound_is_gone_with_the_broker() {
    let mut machine = Machine::new();
    let dom0 = machine.join(DOM0);
    let guest = machine.join(ONE);
    let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    machine.lose();
    assert!(readable(&*channel));
    assert!(matches!(channel.take(), Err(event_channel::Error::Closed)));
    machine.succeed();
    let refused = dom0.bind_interdomain(ONE, channel.port());
    assert!(matches!(refused, Err(event_channel::Error::NoSuchPort { .. })));
}

#[test]
fn domain_that_dies_while_there_is_no_broker_has_no_process_at_the_successor() {
    let mut machine = Machine::new();
    let dom0 = machine.join(DOM0);
    let process = Process::start(machine.dir.path(), "guest", &[41]);
    let refs = [GrantRef(process.output[0])];
    let mapping = dom0.map(ONE, &refs, Access::ReadWrite).expect("map");
    let unused = dom0.map(ONE, &refs, Access::ReadOnly).expect("map");
    drop(unused);
    machine.lose();
    process.kill();
    machine.succeed();
    let death = machine.control().await_death(ONE).expect("watch");
    assert!(death.wait(TIMEOUT).expect("wait"));
    // What is mapped stays, and the next process has another arena.
    assert_eq!(byte(mapping.slice(0, 0, 1)), 41);
    let next = Process::start(machine.dir.path(), "guest", &[42]);
    let refs = [GrantRef(next.output[0])];
    let is_new = || {
        let mapping = dom0.map(ONE, &refs, Access::ReadOnly);
        mapping.is_ok_and(|mapping| byte(mapping.slice(0, 0, 1)) == 42)
    };
    eventually("the exited process's arena is still in use", is_new);
    next.kill();
}

#[test]
fn pages_that_a_dead_domain_had_mapped_are_unpinned_by_the_successor() {
    let mut machine = Machine::new();
    let guest = machine.join(ONE);
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    let channel = guest.alloc_unbound(DOM0).expect("alloc_unbound");
    let numbers = [shared.refs()[0].0, channel.port().0];
    let process = Process::start(machine.dir.path(), "dom0", &numbers);
    machine.lose();
    process.kill();
    machine.succeed();
    let death = machine.control().await_death(DOM0).expect("watch");
    assert!(death.wait(TIMEOUT).expect("wait"));
    shared.end().expect("the page is still pinned");
}

#[test]
fn only_the_member_itself_takes_a_membership_up() {
    let mut machine = Machine::new();
    let dom0 = machine.join(DOM0);
    // A member that is alive and does not come back, as it knows no token.
    let silent = Process::start(machine.dir.path(), "silent", &[]);
    machine.lose();
    machine.succeed();
    let dir = machine.dir.path();
    for domid in [DOM0, ONE, TWO] {
        let forged = Request::Rejoin { domid, token: Token::from_bytes([0; 16]) };
        let reply = ask(dir, &forged);
        assert!(matches!(reply, Some(Reply::Failed(..))), "{domid}: {reply:?}");
    }
    // Not before it is known whether the member comes back.
    let reply = ask(dir, &Request::Join(ONE));
    assert!(
        matches!(reply, Some(Reply::Failed(hypervisor::local::internals::Failure::Away, _))),
        "{reply:?}"
    );
    silent.kill();
    let guest = machine.join(ONE);
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    dom0.map(ONE, shared.refs(), Access::ReadWrite).expect("map");
    // A port can be restored only while a membership is taken up.
    let reply = ask(dir, &Request::RestorePort(EventPort(7)));
    assert!(matches!(reply, Some(Reply::Failed(..))), "{reply:?}");
}

#[test]
fn members_of_a_broker_that_was_stopped_end() {
    let mut machine = Machine::new();
    let guest = machine.join(ONE);
    drop(machine.broker.take());
    let ended = || matches!(guest.alloc_unbound(DOM0), Err(event_channel::Error::Closed));
    eventually("a membership without a machine", ended);
    let error = Connector::connect(&*guest).err().expect("there is no machine");
    assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    let next = broker(machine.dir.path());
    assert!(!next.has_taken_over());
    assert!(matches!(machine.control().get(ONE), Err(Error::NoSuchDomain(ONE))));
}

#[test]
fn store_is_refused_at_once_while_there_is_no_broker() {
    let mut machine = Machine::new();
    let guest = machine.join(ONE);
    machine.lose();
    let error = Connector::connect(&*guest).err().expect("there is no broker");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    machine.succeed();
    eventually("the store is not reached at the successor", || Connector::connect(&*guest).is_ok());
}
