//! The store's protection from a guest: quotas, malformed messages, and unread replies and events.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use common::{BOUND, Running, event, events};
use ring_abi::xs_wire::{Header, MessageType};
use xenstore::server::{Config, Core, Quotas, Store};
use xenstore::wire::{Decoder, Message};
use xenstore::{Access, Client, DomId, Error, Nodes, Permission, XsError};

/// A store with a guest that owns its home.
fn guest() -> (Running, Client, Client) {
    let running = Running::new();
    let mut dom0 = running.dom0();
    let guest = running.domain(1);
    dom0.mkdir("/local/domain/1").unwrap();
    dom0.set_perms("/local/domain/1", &[Permission::new(DomId(1), Access::None)]).unwrap();
    (running, dom0, guest)
}

fn err<T: std::fmt::Debug>(result: Result<T, Error>) -> XsError {
    let error = result.unwrap_err();
    error.store_error().unwrap_or_else(|| panic!("not an error reply: {error}"))
}

/// Reports when it is dropped.
struct Report(Sender<()>);

impl Drop for Report {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn lease_of_a_connection_is_dropped_once_it_is_closed() {
    let running = Running::new();
    let (dropped, is_dropped) = channel();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let lease = Box::new(Report(dropped.clone()));
    running.store.handle().introduce_with(DomId(1), theirs, lease).unwrap();
    let mut client = Client::new(ours);
    assert_eq!(err(client.directory("/")), XsError::EACCES);
    assert!(is_dropped.try_recv().is_err());
    drop(client);
    is_dropped.recv_timeout(BOUND).unwrap();
    let (_refused, theirs) = UnixStream::pair().unwrap();
    let lease = Box::new(Report(dropped));
    running.store.handle().introduce_with(DomId::DOM0, theirs, lease).unwrap_err();
    is_dropped.recv_timeout(BOUND).unwrap();
}

#[test]
fn guest_owns_at_most_a_thousand_nodes() {
    let (_running, mut dom0, mut guest) = guest();
    // Its home is one node, `n` another, and ten are below `n`, as a node's size bounds its number of children.
    for n in 0..988 {
        guest.mkdir(&format!("n/{}/{n}", n % 10)).unwrap();
    }
    assert_eq!(err(guest.mkdir("n/x")), XsError::ENOSPC);
    assert_eq!(err(guest.write("a/b/c", "x")), XsError::ENOSPC);
    assert!(!dom0.exists("/local/domain/1/a").unwrap());
    guest.write("n/5/5", "there already").unwrap();
    let in_transaction = guest.transaction(|tx| {
        tx.rm("n/0/0")?;
        tx.mkdir("n/x")?;
        tx.mkdir("n/y")
    });
    assert_eq!(err(in_transaction), XsError::ENOSPC);
    guest.rm("n/0/0").unwrap();
    guest.mkdir("n/x").unwrap();
    assert_eq!(err(guest.mkdir("n/y")), XsError::ENOSPC);
    dom0.mkdir("/local/domain/1/from-dom0").unwrap();
    dom0.set_quota(Some(DomId(1)), "nodes", 0).unwrap();
    guest.mkdir("n/y").unwrap();
}

#[test]
fn node_size_watches_transactions_and_permissions_are_bounded() {
    let (_running, mut dom0, mut guest) = guest();
    guest.write("v", vec![b'x'; 2024]).unwrap();
    assert_eq!(err(guest.write("v", vec![b'x'; 2025])), XsError::ENOSPC);
    assert_eq!(err(guest.write("w", vec![b'x'; 2025])), XsError::ENOSPC);
    dom0.write("/local/domain/1/v", vec![b'x'; 4000]).unwrap();
    let mut list = vec![Permission::new(DomId(1), Access::None); 5];
    guest.set_perms("v", &list).unwrap_err();
    guest.write("small", "").unwrap();
    guest.set_perms("small", &list).unwrap();
    list.push(Permission::new(DomId(2), Access::Read));
    assert_eq!(err(guest.set_perms("small", &list)), XsError::ENOSPC);
    for n in 0..128 {
        guest.watch("v", &n.to_string()).unwrap();
    }
    assert_eq!(err(guest.watch("v", "one more")), XsError::E2BIG);
    guest.unwatch("v", "0").unwrap();
    guest.watch("v", "one more").unwrap();
    for _ in 0..10 {
        guest.request(MessageType::TransactionStart, "", b"\0").unwrap();
    }
    assert_eq!(err(guest.transaction(|_| Ok(()))), XsError::ENOSPC);
    guest.reset_watches().unwrap();
    guest.transaction(|_| Ok(())).unwrap();
    assert_eq!(err(guest.read(&"p".repeat(2049))), XsError::EINVAL);
    assert_eq!(err(guest.read(&"p".repeat(2048))), XsError::ENOENT);
    for _ in 0..200 {
        dom0.request(MessageType::TransactionStart, "", b"\0").unwrap();
    }
}

#[test]
fn transaction_beyond_its_quota_cannot_commit() {
    let (_running, _dom0, mut guest) = guest();
    guest.write("n", "1").unwrap();
    let id = guest.request(MessageType::TransactionStart, "", b"\0").unwrap();
    assert_eq!(id, b"1\0");
    let done = guest.transaction(|tx| {
        for n in 0..2000 {
            tx.write("n", n.to_string())?;
        }
        Ok(())
    });
    assert_eq!(err(done), XsError::ENOSPC);
    // A client that ignores the errors gets one for the commit.
    let done = guest.transaction(|tx| {
        for n in 0..2000 {
            let _ = tx.write("n", n.to_string());
        }
        Ok(())
    });
    assert_eq!(err(done), XsError::ENOMEM);
    assert_eq!(guest.read("n").unwrap(), b"1");
}

#[test]
fn old_transaction_of_a_guest_expires() {
    let (_running, mut dom0, mut guest) = guest();
    let mut attempts = 0;
    guest
        .transaction(|tx| {
            attempts += 1;
            tx.write("n", "1")?;
            for n in 0..if attempts == 1 { 5000 } else { 0 } {
                dom0.write("/elsewhere", n.to_string())?;
            }
            tx.write("m", "1")
        })
        .unwrap();
    assert_eq!(attempts, 2);
    assert_eq!(guest.read("n").unwrap(), b"1");
}

/// Sends one request and returns its reply's type and payload.
fn exchange(stream: &mut UnixStream, kind: u32, tx_id: u32, payload: &[u8]) -> (u32, Vec<u8>) {
    let header = Header { kind, req_id: 42, tx_id, len: payload.len() as u32 };
    stream.write_all(&[&header.to_bytes(), payload].concat()).unwrap();
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    let header = Header::from_bytes(&bytes);
    assert_eq!((header.req_id, header.tx_id), (42, tx_id));
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).unwrap();
    (header.kind, payload)
}

#[test]
fn malformed_requests_get_errors_and_overlong_ones_close_the_connection() {
    let running = Running::new();
    let mut stream = running.stream(1);
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let error = MessageType::Error as u32;
    for (kind, tx_id, payload, name) in [
        (20, 0, b"".as_slice(), "ENOSYS"),
        (27, 0, b"", "ENOSYS"),
        (15, 0, b"/\0t\0", "ENOSYS"),
        (16, 0, b"", "ENOSYS"),
        (0xffff, 0, b"", "ENOSYS"),
        (u32::MAX, 0, b"", "ENOSYS"),
        (2, 0, b"", "EINVAL"),
        (2, 0, b"/no-nul", "EINVAL"),
        (2, 0, b"/a\0/b\0", "EINVAL"),
        (2, 0, b"/\xff\0", "EINVAL"),
        (2, 7, b"/\0", "ENOENT"),
        (11, 0, b"no-nul", "EINVAL"),
        (4, 0, b"/a\0", "EINVAL"),
        (4, 0, b"/a\0t\0u\0", "EINVAL"),
        (6, 9, b"\0", "ENOENT"),
        (7, 0, b"T\0", "ENOENT"),
        (7, 0, b"X\0", "EINVAL"),
        (10, 0, b"x\0", "EINVAL"),
        (10, 0, b"65536\0", "EINVAL"),
        (14, 0, b"/\0", "EINVAL"),
        (14, 0, b"/\0q1\0", "EINVAL"),
        (22, 0, b"/\0-1\0", "EINVAL"),
        (8, 0, b"", "EACCES"),
    ] {
        let expected = (error, [name.as_bytes(), b"\0"].concat());
        assert_eq!(exchange(&mut stream, kind, tx_id, payload), expected, "type {kind} {payload:?}");
    }
    let header = Header { kind: 2, req_id: 1, tx_id: 0, len: 4097 };
    stream.write_all(&header.to_bytes()).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    // A connection closed in the middle of a message does not affect the others.
    let half = running.stream(1);
    (&half).write_all(&[0; 15]).unwrap();
    half.shutdown(Shutdown::Both).unwrap();
    running.dom0().write("/alive", "1").unwrap();
}

#[test]
fn requests_are_not_read_while_replies_are_unread() {
    let (running, mut dom0, _guest) = guest();
    dom0.write("/local/domain/1/v", vec![b'x'; 2000]).unwrap();
    let mut slow = running.stream(1);
    slow.set_nonblocking(true).unwrap();
    let request = Message::new(MessageType::Read, 1, 0, b"v\0".to_vec()).to_bytes();
    // The client can write until every buffer is full.
    let mut sent = 0;
    loop {
        match slow.write(&request[sent % request.len()..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
        assert!(sent < 16 << 20, "the store keeps reading");
    }
    // Others are served meanwhile, and the client gets every reply once it reads them.
    assert_eq!(dom0.read("/local/domain/1/v").unwrap().len(), 2000);
    slow.set_nonblocking(false).unwrap();
    slow.set_read_timeout(Some(BOUND)).unwrap();
    let mut decoder = Decoder::default();
    let mut replies = 0;
    let mut bytes = [0; 65536];
    while replies < sent / request.len() {
        let n = slow.read(&mut bytes).unwrap();
        assert_ne!(n, 0);
        decoder.push(&bytes[..n]);
        while let Some(reply) = decoder.take().unwrap() {
            assert_eq!((reply.kind(), reply.payload.len()), (Some(MessageType::Read), 2000));
            replies += 1;
        }
    }
}

#[test]
fn connection_with_too_many_unread_events_is_closed() {
    let (running, mut dom0, mut good) = guest();
    let mut slow = running.domain(2);
    dom0.mkdir("/shared").unwrap();
    dom0.set_perms("/shared", &[Permission::new(DomId(0), Access::Read)]).unwrap();
    slow.watch("/shared", "t").unwrap();
    good.watch("/shared/same", "t").unwrap();
    // Equal unread events are one event.
    for _ in 0..5000 {
        dom0.write("/shared/same", "").unwrap();
    }
    // The events of requests that are answered come before the reply to its own.
    assert!(events(&mut good).len() < 5000);
    for n in 0..4000 {
        dom0.write(&format!("/shared/{n}"), "").unwrap();
        dom0.rm(&format!("/shared/{n}")).unwrap();
    }
    let end = loop {
        match slow.wait_event(Some(BOUND)) {
            Ok(Some(_)) | Err(Error::EventsLost(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Err(Error::Closed)), "{end:?}");
    // The domain is still introduced and can connect again.
    assert!(dom0.is_introduced(DomId(2)).unwrap());
    running.domain(2).watch("/shared", "t").unwrap();
    dom0.write("/shared/same", "x").unwrap();
    assert_eq!(event(&mut good).path, "/shared/same");
    assert_eq!(events(&mut good), []);
}

#[test]
fn unread_events_of_all_connections_count_together() {
    let mut core = Core::new(Quotas::default());
    let dom0 = core.connect();
    let conns: Vec<_> = (0..64).map(|_| core.introduce(DomId(1)).unwrap()).collect();
    let run = |core: &mut Core, conn, kind, payload: String| {
        core.input(conn, &Message::new(kind, 1, 0, payload.into_bytes()).to_bytes());
        while core.step() {}
    };
    run(&mut core, dom0, MessageType::SetPerms, "/\0r0\0".into());
    for conn in &conns {
        run(&mut core, *conn, MessageType::Watch, "/\0t\0".into());
    }
    // Each write is an event on every connection.
    for n in 0..100 {
        run(&mut core, dom0, MessageType::Write, format!("/n-{n}\0"));
        core.sent(dom0, core.output(dom0).len());
    }
    let open: Vec<_> = conns.iter().filter(|conn| !core.closed(**conn)).collect();
    let bytes: usize = open.iter().map(|conn| core.backlog(**conn).1).sum();
    // An event is 16 bytes of header and nine at most of path and token.
    assert!(!open.is_empty() && open.len() <= 12, "{} open", open.len());
    assert!(bytes <= 1024 * 25 + 64 * 30, "{bytes} bytes unread");
}

#[test]
fn stop_removes_the_socket_and_start_replaces_a_stale_one() {
    let running = Running::new();
    running.dom0().write("/x", "1").unwrap();
    let socket = running.socket();
    drop(running.store);
    assert!(!socket.exists());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let store = Store::spawn(Config::at(&socket)).unwrap();
    Client::open_unix(&socket).unwrap().write("/x", "1").unwrap();
    let second = Store::spawn(Config::at(&socket)).map(|_| ()).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AddrInUse);
    drop(store);
}

/// A writer that collects log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn exceeded_quota_is_logged_once_with_name_domain_and_value() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut core = Core::new(Quotas::default());
        let conn = core.introduce(DomId(9)).unwrap();
        for n in 0..300 {
            let payload = format!("/x\0{n}\0").into_bytes();
            core.input(conn, &Message::new(MessageType::Watch, n, 0, payload).to_bytes());
            while core.step() {}
            while !core.output(conn).is_empty() {
                core.sent(conn, core.output(conn).len());
            }
        }
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| l.contains("quota exceeded")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in ["domid=9", "quota=\"watches\"", "most=128", "used=129"] {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
}

#[test]
fn guest_has_at_most_twenty_unsent_replies() {
    let mut core = Core::new(Quotas::default());
    let conn = core.introduce(DomId(1)).unwrap();
    let request = Message::new(MessageType::GetDomainPath, 1, 0, b"1\0".to_vec()).to_bytes();
    let mut sent = 0;
    while core.wants_input(conn) {
        core.input(conn, &request);
        while core.step() {}
        sent += 1;
        assert!(sent <= 20);
    }
    assert_eq!(sent, 20);
    core.sent(conn, core.output(conn).len());
    assert!(core.wants_input(conn));
}
