//! Hostile clients of the broker: invalid messages, forged arenas, floods, and access to other domains.

use super::{TIMEOUT, sandbox};
use event_channel::EventChannels;
use grant_table::{Access, GrantTable};
use hypervisor::Error;
use hypervisor::local::internals::{Layout, MAX_MESSAGE, Reply, Request};
use hypervisor::local::{Broker, BrokerConfig, Control, Domain, Sandbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, socket,
};
use ring_abi::{DomId, EventPort, GrantRef};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const DOM0: DomId = DomId::DOM0;

/// A connection that sends arbitrary messages.
struct Attacker(OwnedFd);

impl Attacker {
    fn new(sandbox: &Sandbox) -> Self {
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        let address = UnixAddr::new(&sandbox.dir().join("broker.sock")).expect("address");
        connect(fd.as_raw_fd(), &address).expect("connect");
        Self(fd)
    }

    fn joined(sandbox: &Sandbox, domid: DomId) -> Self {
        let attacker = Self::new(sandbox);
        assert_eq!(attacker.call(&Request::Join(domid), &[]), Some(Reply::Done));
        attacker
    }

    /// Joins once the descriptors that an earlier process of the domain has sent are closed.
    fn joined_again(sandbox: &Sandbox, domid: DomId) -> Self {
        let end = std::time::Instant::now() + TIMEOUT;
        loop {
            let attacker = Self::new(sandbox);
            match attacker.call(&Request::Join(domid), &[]) {
                Some(Reply::Done) => return attacker,
                Some(Reply::Failed(hypervisor::local::internals::Failure::NoSpace, _)) => {}
                other => panic!("{other:?}"),
            }
            assert!(std::time::Instant::now() < end, "they are not closed");
        }
    }

    fn send(&self, bytes: &[u8], fds: &[i32]) -> nix::Result<usize> {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None)
    }

    /// Receives a reply; `None` once the broker has disconnected.
    fn receive(&self) -> Option<Reply> {
        let mut bytes = [0; MAX_MESSAGE];
        let len = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap_or(0);
        (len > 0).then(|| Reply::decode(&bytes[..len]).expect("a valid reply"))
    }

    /// The broker refuses what it has sent, and disconnects it.
    fn is_disconnected(&self) {
        assert!(refused(self.receive()));
        assert_eq!(self.receive(), None, "disconnected");
    }

    fn call(&self, request: &Request, fds: &[i32]) -> Option<Reply> {
        self.send(&request.encode(), fds).expect("send");
        self.receive()
    }
}

fn refused(reply: Option<Reply>) -> bool {
    matches!(reply, Some(Reply::Failed(..)))
}

/// Checks that the broker still serves other domains.
fn assert_serves_others(sandbox: &Sandbox) {
    let dom0 = sandbox.join(DOM0).expect("join");
    let guest = sandbox.join(DomId(2)).expect("join");
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    dom0.map(DomId(2), shared.refs(), Access::ReadWrite).expect("map");
    drop((dom0, guest, shared));
    for domid in [DOM0, DomId(2)] {
        assert!(sandbox.control().await_death(domid).expect("watch").wait(TIMEOUT).expect("wait"));
    }
}

#[test]
fn client_that_sends_an_invalid_message_is_disconnected() {
    let sandbox = sandbox();
    let join = Request::Join(DomId(1)).encode();
    let long = vec![1; MAX_MESSAGE + 1];
    let kinds: [&[u8]; 5] = [&join[..5], &[0xff; 12], b"GET / HTTP/1.1\r\n\r\n", &long, &[0; 200]];
    for bytes in kinds {
        let attacker = Attacker::new(&sandbox);
        attacker.send(bytes, &[]).expect("send");
        assert!(refused(attacker.receive()));
        assert_eq!(attacker.receive(), None, "disconnected");
        assert_serves_others(&sandbox);
    }
}

#[test]
fn client_that_sends_unexpected_descriptors_is_disconnected() {
    let sandbox = sandbox();
    let null = std::fs::File::open("/dev/null").expect("open");
    for count in [2, 3, 200] {
        // The kernel passes none to the broker before a client has joined, if it is recent enough.
        let attacker = Attacker::new(&sandbox);
        match attacker.send(&Request::Join(DomId(1)).encode(), &vec![null.as_raw_fd(); count]) {
            Err(nix::errno::Errno::EPERM) => {}
            sent => {
                sent.expect("send");
                attacker.is_disconnected();
            }
        }
        for request in [Request::Store, Request::Fetch(DOM0), Request::Offer { peer: DOM0, pages: 64 }] {
            let attacker = Attacker::joined_again(&sandbox, DomId(1));
            attacker.send(&request.encode(), &vec![null.as_raw_fd(); count]).expect("send");
            attacker.is_disconnected();
        }
    }
    assert_serves_others(&sandbox);
}

/// A socket whose `close` blocks: it lingers for its data, which nobody reads.
fn lingering() -> (OwnedFd, std::net::TcpStream) {
    use std::io::Write;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let mut socket = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (unread, _) = listener.accept().expect("accept");
    socket.set_nonblocking(true).expect("nonblocking");
    while socket.write(&[0; 65536]).is_ok() {}
    // A descriptor that does not block does not linger.
    socket.set_nonblocking(false).expect("blocking");
    let linger = nix::libc::linger { l_onoff: 1, l_linger: LINGER.as_secs() as i32 };
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger).expect("linger");
    (socket.into(), unread)
}

/// How long the sockets linger at most: until the test drops their other ends.
const LINGER: std::time::Duration = std::time::Duration::from_secs(60);

#[test]
fn sockets_that_linger_at_close_delay_nobody() {
    let sandbox = sandbox();
    let mut unread = Vec::new();
    let offer = Request::Offer { peer: DOM0, pages: 64 }.encode();
    let store = Request::Store.encode();
    // Where a descriptor is expected, where none is, in an empty message, and in a message that is never received.
    let messages: [&[&[u8]]; 4] = [&[&offer], &[&store], &[b""], &[&[0xff; 12], &offer]];
    let start = std::time::Instant::now();
    // Who closes a socket last is who lingers: often enough the broker.
    for messages in messages.into_iter().cycle().take(24) {
        let attacker = Attacker::joined_again(&sandbox, DomId(1));
        for message in messages {
            let (socket, other) = lingering();
            let (sent, is_sent) = std::sync::mpsc::channel::<()>();
            let raw = socket.as_raw_fd();
            std::thread::spawn(move || {
                let _ = is_sent.recv();
                drop(socket);
            });
            // The broker may have disconnected it after the first.
            let _ = attacker.send(message, &[raw]);
            drop(sent);
            unread.push(other);
        }
        drop(attacker);
        assert!(sandbox.control().await_death(DomId(1)).expect("watch").wait(TIMEOUT).expect("wait"));
        assert_serves_others(&sandbox);
    }
    let took = start.elapsed();
    assert!(took < LINGER / 4, "others waited for {took:?}");
}

#[test]
fn domains_process_is_known_by_a_descriptor() {
    let sandbox = sandbox();
    let guest = sandbox.join(DomId(1)).expect("join");
    let process = sandbox.control().process(DomId(1)).expect("its process");
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).expect("read");
    assert!(info.lines().any(|line| line == format!("Pid:\t{}", std::process::id())), "{info}");
    drop(guest);
    assert!(sandbox.control().await_death(DomId(1)).expect("watch").wait(TIMEOUT).expect("wait"));
    assert!(matches!(sandbox.control().process(DomId(1)), Err(Error::NoSuchDomain(DomId(1)))));
}

#[test]
fn offer_of_an_invalid_arena_is_refused() {
    let sandbox = sandbox();
    let attacker = Attacker::joined(&sandbox, DomId(1));
    let pages = 64;
    let offer = |peer| Request::Offer { peer, pages };
    assert!(refused(attacker.call(&offer(DOM0), &[])), "no descriptor");
    let null = std::fs::File::open("/dev/null").expect("open");
    assert!(refused(attacker.call(&offer(DOM0), &[null.as_raw_fd()])), "not a memfd");
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC | nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let memfd = std::fs::File::from(nix::sys::memfd::memfd_create(c"attacker", flags).expect("memfd"));
    memfd.set_len(64 * 4096).expect("size");
    assert!(refused(attacker.call(&offer(DOM0), &[memfd.as_raw_fd()])), "not sealed");
    let layout = Layout::new(pages).expect("a size");
    let good = hypervisor::local::internals::Arena::create(layout).expect("an arena");
    let good = good.fd().as_raw_fd();
    for pages in [0, 63, 128, 1 << 31] {
        assert!(refused(attacker.call(&Request::Offer { peer: DOM0, pages }, &[good])), "{pages} pages");
    }
    assert!(refused(attacker.call(&offer(DomId(77)), &[good])), "for a domain that does not exist");
    assert_eq!(attacker.call(&offer(DOM0), &[good]), Some(Reply::Done));
}

#[test]
fn client_cannot_act_as_another_domain_or_role() {
    let sandbox = sandbox();
    let uid = nix::unistd::getuid().as_raw();
    let other = sandbox.control().create("other-users", uid + 1, None).expect("create");
    let error = Domain::join(sandbox.dir(), other).expect_err("another user's domain");
    assert!(matches!(error, Error::Denied(_)), "{error}");
    let _member = sandbox.join(DomId(1)).expect("join");
    let error = Domain::join(sandbox.dir(), DomId(1)).expect_err("taken");
    assert!(matches!(error, Error::Denied(_)) && error.to_string().contains("already"), "{error}");
    let error = Domain::join(sandbox.dir(), DomId(99)).expect_err("no such domain");
    assert!(matches!(error, Error::NoSuchDomain(_)), "{error}");

    let unauthenticated = Attacker::new(&sandbox);
    assert!(refused(unauthenticated.call(&Request::Fetch(DomId(1)), &[])), "not authenticated");
    let guest = Attacker::joined(&sandbox, DomId(2));
    for request in [
        Request::Join(DOM0),
        Request::Control,
        Request::Destroy(DomId(1)),
        Request::Create { uid: 0, domid: None, name: "mine".into() },
        Request::Next(None),
        Request::Await { domid: DomId(1), alive: false },
    ] {
        assert!(refused(guest.call(&request, &[])), "{request:?}");
    }
    let controller = Attacker::new(&sandbox);
    assert_eq!(controller.call(&Request::Control, &[]), Some(Reply::Done));
    assert!(refused(controller.call(&Request::AllocUnbound(DomId(1)), &[])));
}

#[test]
fn guest_cannot_reach_the_grants_and_ports_of_another() {
    let sandbox = sandbox();
    let dom0 = sandbox.join(DOM0).expect("join");
    let one = sandbox.join(DomId(1)).expect("join");
    let two = sandbox.join(DomId(2)).expect("join");
    let shared = one.share(DOM0, 1, Access::ReadWrite).expect("share");
    let channel = one.alloc_unbound(DOM0).expect("alloc_unbound");
    let error = two.map(DomId(1), shared.refs(), Access::ReadOnly).expect_err("granted to dom0");
    assert!(matches!(error, grant_table::Error::Grant { gref, .. } if gref == shared.refs()[0]), "{error}");
    let error = two.bind_interdomain(DomId(1), channel.port()).map(|_| ()).expect_err("allocated for dom0");
    assert!(matches!(error, event_channel::Error::NoSuchPort { .. }), "{error}");
    assert!(two.bind_interdomain(DomId(50), EventPort(1)).is_err());
    assert!(two.map(DomId::FIRST_RESERVED, &[GrantRef(8)], Access::ReadOnly).is_err());
    dom0.bind_interdomain(DomId(1), channel.port()).expect("bind_interdomain");
}

#[test]
fn create_with_a_taken_or_invalid_name_or_number_is_refused() {
    let sandbox = sandbox();
    let control = sandbox.control();
    for (name, domid) in [
        ("one", None),
        ("three", Some(DomId(2))),
        ("", None),
        ("a/b", None),
        ("..", None),
        ("a\nb", None),
        ("Domain-0", None),
    ] {
        assert!(matches!(control.create(name, 0, domid), Err(Error::Denied(_))), "{name:?} {domid:?}");
    }
    assert!(matches!(control.destroy(DOM0), Err(Error::Denied(_))));
    assert!(matches!(control.destroy(DomId(40)), Err(Error::NoSuchDomain(_))));
    let three = control.create("three", 0, None).expect("create");
    control.destroy(three).expect("destroy");
    assert_ne!(control.create("three", 0, None).expect("create"), three, "a number is not reused soon");
    let names: Vec<_> = control.list().expect("list").into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["Domain-0", "one", "two", "three"]);
}

#[test]
fn client_that_floods_is_disconnected_and_others_are_served() {
    let sandbox = sandbox();
    let flood = Attacker::joined(&sandbox, DomId(1));
    // The replies are not read: the broker disconnects the client once its socket is full.
    let request = Request::AllocUnbound(DOM0).encode();
    let disconnected = (0..100_000).any(|_| match flood.send(&request, &[]) {
        Ok(_) => false,
        Err(nix::errno::Errno::EAGAIN) => {
            let mut fds = [PollFd::new(flood.0.as_fd(), PollFlags::POLLOUT)];
            let room = poll(&mut fds, PollTimeout::try_from(TIMEOUT).expect("a timeout")).expect("poll");
            assert_eq!(room, 1, "the broker neither reads nor disconnects");
            false
        }
        Err(_) => true,
    });
    assert!(disconnected, "a client that reads no replies is never disconnected");
    assert_serves_others(&sandbox);

    let crowd: Vec<_> = (0..300).map(|_| Attacker::new(&sandbox)).collect();
    let mut ends: Vec<_> =
        crowd.iter().map(|attacker| PollFd::new(attacker.0.as_fd(), PollFlags::POLLIN)).collect();
    // The broker disconnects them one after the other; those are no longer polled.
    for _ in 0..200 {
        let more = poll(&mut ends, PollTimeout::try_from(TIMEOUT).expect("a timeout")).expect("poll");
        assert!(more > 0, "{} of 300 unauthenticated connections are open", ends.len());
        ends.retain(|fd| fd.revents().is_none_or(|flags| flags.is_empty()));
        if ends.len() <= 100 {
            break;
        }
    }
    assert!(ends.len() <= 100);
    drop(crowd);
    assert_serves_others(&sandbox);
}

/// The predecessor's last messages are still unread when its successor joins.
#[test]
fn successor_joins_before_the_broker_has_processed_the_exit() {
    let sandbox = sandbox();
    for _ in 0..50 {
        let chatty = Attacker::joined(&sandbox, DomId(1));
        for _ in 0..100 {
            let _ = chatty.send(&Request::Close(EventPort(1)).encode(), &[]);
        }
        drop(chatty);
        drop(Attacker::joined(&sandbox, DomId(1)));
    }
}

#[test]
fn guest_that_allocates_ports_without_end_gets_no_space() {
    let sandbox = sandbox();
    let guest = sandbox.join(DomId(1)).expect("join");
    let mut channels = Vec::new();
    let error = loop {
        match guest.alloc_unbound(DOM0) {
            Ok(channel) => channels.push(channel),
            Err(error) => break error,
        }
        assert!(channels.len() < 10_000);
    };
    assert!(matches!(error, event_channel::Error::NoSpace(_)), "{error}");
    channels.clear();
    guest.alloc_unbound(DOM0).expect("ports were freed");
}

#[test]
fn second_broker_of_a_directory_is_refused_until_the_first_exits() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Broker::spawn(BrokerConfig::new(dir.path())).expect("a broker");
    let error = Broker::spawn(BrokerConfig::new(dir.path())).expect_err("there is one");
    assert!(matches!(error, Error::Denied(_)) && error.to_string().contains("another broker"), "{error}");
    drop(broker);
    assert!(matches!(Control::connect(dir.path()), Err(Error::Io { .. })));
    // A stale socket, as of a killed broker.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("broker.sock")).expect("bind"));
    let _broker = Broker::spawn(BrokerConfig::new(dir.path())).expect("a stale socket is replaced");
    Control::connect(dir.path()).expect("connect").list().expect("list");
}
