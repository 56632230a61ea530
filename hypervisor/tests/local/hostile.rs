//! Clients of the broker that lie, babble and flood, and what they must not reach.

use super::{BOUND, sandbox};
use hypervisor::local::internals::{Layout, MAX_MESSAGE, Reply, Request};
use hypervisor::local::{Broker, BrokerConfig, Control, Domain, Sandbox};
use hypervisor::{Access, DomId, Error, EventPort, GrantRef, Hypervisor};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, socket,
};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const DOM0: DomId = DomId::DOM0;

/// A connection that says whatever it likes.
struct Liar(OwnedFd);

impl Liar {
    fn new(sandbox: &Sandbox) -> Self {
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        let address = UnixAddr::new(&sandbox.dir().join("broker.sock")).expect("address");
        connect(fd.as_raw_fd(), &address).expect("connect");
        Self(fd)
    }

    fn joined(sandbox: &Sandbox, domid: DomId) -> Self {
        let liar = Self::new(sandbox);
        assert_eq!(liar.ask(&Request::Join(domid), &[]), Some(Reply::Done));
        liar
    }

    fn say(&self, bytes: &[u8], fds: &[i32]) -> nix::Result<usize> {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None)
    }

    /// The answer; `None` once the broker has hung up.
    fn hear(&self) -> Option<Reply> {
        let mut bytes = [0; MAX_MESSAGE];
        let len = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap_or(0);
        (len > 0).then(|| Reply::decode(&bytes[..len]).expect("the broker speaks its language"))
    }

    fn ask(&self, request: &Request, fds: &[i32]) -> Option<Reply> {
        self.say(&request.encode(), fds).expect("say");
        self.hear()
    }
}

fn refused(reply: Option<Reply>) -> bool {
    matches!(reply, Some(Reply::Failed(..)))
}

/// Whether the broker still does what it should for others.
fn works(sandbox: &Sandbox) {
    let (dom0, guest) = (sandbox.join(DOM0).expect("join"), sandbox.join(DomId(2)).expect("join"));
    let shared = guest.share(DOM0, 1, Access::ReadWrite).expect("share");
    dom0.map(DomId(2), shared.refs(), Access::ReadWrite).expect("map");
    drop((dom0, guest, shared));
    for domid in [DOM0, DomId(2)] {
        assert!(sandbox.control().await_death(domid).expect("watch").wait(BOUND).expect("wait"));
    }
}

#[test]
fn nonsense_is_refused_and_cut_off() {
    let sandbox = sandbox();
    let join = Request::Join(DomId(1)).encode();
    let long = vec![1; MAX_MESSAGE + 1];
    let kinds: [&[u8]; 5] = [&join[..5], &[0xff; 12], b"GET / HTTP/1.1\r\n\r\n", &long, &[0; 200]];
    for bytes in kinds {
        let liar = Liar::new(&sandbox);
        liar.say(bytes, &[]).expect("say");
        assert!(refused(liar.hear()));
        assert_eq!(liar.hear(), None, "cut off");
        works(&sandbox);
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused() {
    let sandbox = sandbox();
    let null = std::fs::File::open("/dev/null").expect("open");
    for count in [2, 3, 200] {
        let liar = Liar::new(&sandbox);
        liar.say(&Request::Join(DomId(1)).encode(), &vec![null.as_raw_fd(); count]).expect("say");
        assert!(refused(liar.hear()));
        assert_eq!(liar.hear(), None, "cut off");
    }
    works(&sandbox);
}

#[test]
fn wrong_arenas_are_refused() {
    let sandbox = sandbox();
    let liar = Liar::joined(&sandbox, DomId(1));
    let pages = 64;
    let offer = |peer| Request::Offer { peer, pages };
    assert!(refused(liar.ask(&offer(DOM0), &[])), "no descriptor");
    let null = std::fs::File::open("/dev/null").expect("open");
    assert!(refused(liar.ask(&offer(DOM0), &[null.as_raw_fd()])), "no memory");
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC | nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
    let memfd = std::fs::File::from(nix::sys::memfd::memfd_create(c"liar", flags).expect("memfd"));
    memfd.set_len(64 * 4096).expect("size");
    assert!(refused(liar.ask(&offer(DOM0), &[memfd.as_raw_fd()])), "not sealed");
    let layout = Layout::new(pages).expect("a size");
    let good = hypervisor::local::internals::Arena::create(layout).expect("an arena");
    let good = good.fd().as_raw_fd();
    for pages in [0, 63, 128, 1 << 31] {
        assert!(refused(liar.ask(&Request::Offer { peer: DOM0, pages }, &[good])), "{pages} pages");
    }
    assert!(refused(liar.ask(&offer(DomId(77)), &[good])), "nobody's");
    assert_eq!(liar.ask(&offer(DOM0), &[good]), Some(Reply::Done));
}

#[test]
fn nobody_is_somebody_else() {
    let sandbox = sandbox();
    let uid = nix::unistd::getuid().as_raw();
    let other = sandbox.control().create("somebody-elses", uid + 1, None).expect("create");
    let error = Domain::join(sandbox.dir(), other).expect_err("another user's");
    assert!(matches!(error, Error::Denied(_)), "{error}");
    let _member = sandbox.join(DomId(1)).expect("join");
    let error = Domain::join(sandbox.dir(), DomId(1)).expect_err("taken");
    assert!(matches!(error, Error::Denied(_)) && error.to_string().contains("already"), "{error}");
    let error = Domain::join(sandbox.dir(), DomId(99)).expect_err("not there");
    assert!(matches!(error, Error::NoSuchDomain(_)), "{error}");

    let stranger = Liar::new(&sandbox);
    assert!(refused(stranger.ask(&Request::Fetch(DomId(1)), &[])), "who is it?");
    let guest = Liar::joined(&sandbox, DomId(2));
    for request in [
        Request::Join(DOM0),
        Request::Control,
        Request::Destroy(DomId(1)),
        Request::Create { uid: 0, domid: None, name: "mine".into() },
        Request::Next(None),
        Request::Await { domid: DomId(1), alive: false },
    ] {
        assert!(refused(guest.ask(&request, &[])), "{request:?}");
    }
    let controller = Liar::new(&sandbox);
    assert_eq!(controller.ask(&Request::Control, &[]), Some(Reply::Done));
    assert!(refused(controller.ask(&Request::Listen(DomId(1)), &[])));
}

#[test]
fn guests_do_not_see_each_other() {
    let sandbox = sandbox();
    let (dom0, one) = (sandbox.join(DOM0).expect("join"), sandbox.join(DomId(1)).expect("join"));
    let two = sandbox.join(DomId(2)).expect("join");
    let shared = one.share(DOM0, 1, Access::ReadWrite).expect("share");
    let channel = one.alloc_unbound(DOM0).expect("listen");
    let error = two.map(DomId(1), shared.refs(), Access::ReadOnly).expect_err("another's");
    assert!(matches!(error, Error::Grant { gref, .. } if gref == shared.refs()[0]), "{error}");
    let error = two.bind_interdomain(DomId(1), channel.port()).map(|_| ()).expect_err("another's");
    assert!(matches!(error, Error::NoSuchPort { .. }), "{error}");
    assert!(two.bind_interdomain(DomId(50), EventPort(1)).is_err());
    assert!(two.map(DomId::FIRST_RESERVED, &[GrantRef(8)], Access::ReadOnly).is_err());
    dom0.bind_interdomain(DomId(1), channel.port()).expect("its own");
}

#[test]
fn names_and_numbers_are_taken_once() {
    let sandbox = sandbox();
    let control = sandbox.control();
    for (name, domid) in
        [("one", None), ("three", Some(DomId(2))), ("", None), ("a/b", None), ("Domain-0", None)]
    {
        assert!(matches!(control.create(name, 0, domid), Err(Error::Denied(_))), "{name:?} {domid:?}");
    }
    assert!(matches!(control.destroy(DOM0), Err(Error::Denied(_))));
    assert!(matches!(control.destroy(DomId(40)), Err(Error::NoSuchDomain(_))));
    let three = control.create("three", 0, None).expect("create");
    control.destroy(three).expect("destroy");
    assert_ne!(control.create("three", 0, None).expect("create"), three, "numbers are not used again soon");
    let names: Vec<_> = control.list().expect("list").into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["Domain-0", "one", "two", "three"]);
}

#[test]
fn floods_are_bounded_and_others_are_served() {
    let sandbox = sandbox();
    let flood = Liar::joined(&sandbox, DomId(1));
    // Requests whose answers nobody reads: the broker hangs up once they pile up.
    let listen = Request::Listen(DOM0).encode();
    let hung_up = (0..100_000).any(|_| match flood.say(&listen, &[]) {
        Ok(_) => false,
        Err(nix::errno::Errno::EAGAIN) => {
            let mut fds = [PollFd::new(flood.0.as_fd(), PollFlags::POLLOUT)];
            let room = poll(&mut fds, PollTimeout::try_from(BOUND).expect("a bound")).expect("poll");
            assert_eq!(room, 1, "the broker neither reads nor hangs up");
            false
        }
        Err(_) => true,
    });
    assert!(hung_up, "an unread flood goes on for ever");
    works(&sandbox);

    let crowd: Vec<_> = (0..300).map(|_| Liar::new(&sandbox)).collect();
    let mut ends: Vec<_> = crowd.iter().map(|liar| PollFd::new(liar.0.as_fd(), PollFlags::POLLIN)).collect();
    // One after the other is hung up on, and is not looked at any more.
    for _ in 0..200 {
        let more = poll(&mut ends, PollTimeout::try_from(BOUND).expect("a bound")).expect("poll");
        assert!(more > 0, "{} of 300 silent strangers are let in", ends.len());
        ends.retain(|fd| fd.revents().is_none_or(|flags| flags.is_empty()));
        if ends.len() <= 100 {
            break;
        }
    }
    assert!(ends.len() <= 100);
    drop(crowd);
    works(&sandbox);
}

/// The dead one's last words are still unread when its successor comes.
#[test]
fn a_successor_need_not_wait_for_the_broker_to_notice() {
    let sandbox = sandbox();
    for _ in 0..50 {
        let chatty = Liar::joined(&sandbox, DomId(1));
        for _ in 0..100 {
            let _ = chatty.say(&Request::Close(EventPort(1)).encode(), &[]);
        }
        drop(chatty);
        drop(Liar::joined(&sandbox, DomId(1)));
    }
}

#[test]
fn ports_and_arenas_of_a_guest_are_bounded() {
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
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    channels.clear();
    guest.alloc_unbound(DOM0).expect("there is room again");
}

#[test]
fn one_broker_a_directory_and_the_dead_do_not_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let broker = Broker::spawn(BrokerConfig::new(dir.path())).expect("a broker");
    let error = Broker::spawn(BrokerConfig::new(dir.path())).expect_err("there is one");
    assert!(matches!(error, Error::Denied(_)) && error.to_string().contains("another broker"), "{error}");
    drop(broker);
    assert!(matches!(Control::connect(dir.path()), Err(Error::Io { .. })));
    // What a killed broker leaves behind.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("broker.sock")).expect("bind"));
    let _broker = Broker::spawn(BrokerConfig::new(dir.path())).expect("a stale socket is replaced");
    Control::connect(dir.path()).expect("connect").list().expect("list");
}
