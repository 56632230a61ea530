//! Hostile clients, each beside one that asks and must be answered at once.
#![allow(unsafe_code)] // The C library has no function that changes one thread's user.

use super::*;
use crate::control::protocol::{Request, StatsQuery, parse_reply};
use nix::sys::eventfd::EventFd;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A bound that no test reaches unless it fails.
const BOUND: Duration = Duration::from_secs(20);

/// A server whose replies are as long as a request's field `domid` says; its thread ends when this is dropped.
struct Running {
    path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
    directory: tempfile::TempDir,
}

impl Running {
    fn start(limits: Limits) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let stop_of_thread = stop.clone();
        let thread = std::thread::spawn(move || serve(&listener, &answer, limits, stop_of_thread.as_fd()));
        Running { path, stop, thread: Some(thread), directory }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
    }

    /// Asserts that a client that asks is answered.
    fn check_serves(&self) {
        let mut stream = self.connect();
        stream.write_all(&request(5)).unwrap();
        assert_eq!(reply(&mut stream), Ok("xxxxx".into()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(matches!(ended, Ok(Ok(()))) || std::thread::panicking());
    }
}

fn answer(line: &[u8]) -> Vec<u8> {
    encode_reply(Request::parse(line).map(|request| match request {
        Request::Stats(StatsQuery { domid, .. }) => "x".repeat(domid.unwrap_or_default().into()).into(),
        Request::Totals(_) | Request::Image(_) => 0.into(),
    }))
}

fn request(len: u16) -> Vec<u8> {
    Request::Stats(StatsQuery { domid: Some(len), ..StatsQuery::default() }).encode()
}

fn reply(stream: &mut UnixStream) -> Result<String, String> {
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
    parse_reply(&line).map(|ok| ok.as_str().unwrap().to_owned())
}

/// Asserts that the server closes a connection, having sent no more than `most` bytes.
fn check_closed(mut stream: UnixStream, most: usize) {
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    // The kernel reports a reset if the server has not read all that was sent.
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    assert!(rest.len() <= most, "{}", rest.len());
}

fn short() -> Limits {
    Limits { time: Duration::from_millis(200), ..Limits::default() }
}

#[test]
fn several_requests_of_one_connection_are_answered_in_order() {
    let running = Running::start(Limits::default());
    let mut stream = running.connect();
    let many: Vec<u8> = (0..100).flat_map(request).collect();
    stream.write_all(&many).unwrap();
    let mut lines = BufReader::new(&stream);
    for len in 0..100 {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        assert_eq!(parse_reply(&line), Ok("x".repeat(len).into()));
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    check_closed(stream, 0);
}

#[test]
fn silent_client_is_closed_when_its_time_is_up() {
    let running = Running::start(short());
    let silent = running.connect();
    running.check_serves();
    check_closed(silent, 0);
    running.check_serves();
}

#[test]
fn client_that_sends_byte_by_byte_is_answered_unless_it_takes_too_long() {
    let running = Running::start(Limits::default());
    let mut slow = running.connect();
    for byte in request(3) {
        slow.write_all(&[byte]).unwrap();
        running.check_serves();
    }
    assert_eq!(reply(&mut slow), Ok("xxx".into()));
    let running = Running::start(short());
    let mut endless = running.connect();
    let started = Instant::now();
    while endless.write_all(b" ").is_ok() {
        assert!(started.elapsed() < BOUND);
        running.check_serves();
    }
}

#[test]
fn client_that_never_reads_is_closed_and_holds_up_nobody() {
    let running = Running::start(short());
    let mut deaf = running.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    // Requests until neither side's buffers take more.
    let ended = (0..10_000).find_map(|_| deaf.write_all(&request(60_000)).err());
    assert!(ended.is_some(), "more was taken than the socket's buffers hold");
    running.check_serves();
    let mut closed = [PollFd::new(deaf.as_fd(), PollFlags::empty())];
    assert_eq!(poll(&mut closed, PollTimeout::try_from(BOUND).unwrap()), Ok(1), "its time is up");
    // What the kernel's buffers held.
    check_closed(deaf, 1 << 20);
    running.check_serves();
}

#[test]
fn garbage_and_wrong_versions_are_refused_and_the_next_request_answered() {
    let running = Running::start(Limits::default());
    let mut stream = running.connect();
    for (line, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], "the request is not JSON"),
        (b"\n", "the request is not JSON"),
        (b"\xff\xfe\x00\n", "the request is not JSON"),
        (b"{\"version\":7,\"command\":\"stats\"}\n", "version: found 7, expected 1"),
    ] {
        stream.write_all(line).unwrap();
        let error = reply(&mut stream).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    stream.write_all(&request(1)).unwrap();
    assert_eq!(reply(&mut stream), Ok("x".into()));
}

#[test]
fn line_of_ten_megabytes_is_refused_at_its_start() {
    let running = Running::start(Limits::default());
    let mut stream = running.connect();
    let sent = stream.write_all(&vec![b'x'; 10 << 20]);
    assert!(sent.is_err(), "the server has read it all");
    assert_eq!(reply(&mut stream), Err("the request is longer than 4096 bytes".into()));
    running.check_serves();
}

#[test]
fn thousand_silent_clients_hold_up_nobody() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let running = Running::start(Limits { time: BOUND * 10, ..Limits::default() });
    let silent: Vec<UnixStream> = (0..1000)
        .map(|number| {
            if number % 100 == 0 {
                running.check_serves();
            }
            running.connect()
        })
        .collect();
    running.check_serves();
    // Those that came first have made room.
    for stream in silent.into_iter().take(900) {
        check_closed(stream, 0);
    }
}

/// Makes this thread, and no other, another user's.
fn become_user(uid: u32) {
    use nix::libc::{SYS_setresuid, syscall};
    // SAFETY: the call takes three numbers. By itself it concerns one thread only, unlike the C library's function.
    assert_eq!(unsafe { syscall(SYS_setresuid, uid, uid, uid) }, 0);
}

#[test]
fn another_users_client_is_refused_and_closed() {
    use std::os::unix::fs::PermissionsExt;
    if !Uid::effective().is_root() {
        return println!("SKIPPED: a client of another user: only root can become one");
    }
    let running = Running::start(Limits::default());
    for (path, mode) in [(running.directory.path(), 0o755), (&running.path, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = running.path.clone();
    let connect = move || {
        become_user(65534);
        UnixStream::connect(path).unwrap()
    };
    let mut stream = std::thread::spawn(connect).join().unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let error = reply(&mut stream).unwrap_err();
    assert_eq!(error, "user 65534 may not ask: only root and this process's user may");
    check_closed(stream, 0);
    running.check_serves();
}

#[test]
fn only_root_and_the_own_user_may_ask() {
    assert!(may_ask(1000, 1000) && may_ask(0, 1000));
    assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
}
