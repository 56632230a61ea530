//! Serves the control socket on one thread, apart from the drivers', within bounds that no client exceeds.
//!
//! A connection lives for five seconds at most, whatever its client does, and has one request and one reply in memory. A
//! client that comes while there are as many as are served takes the place of the one that has been there longest. The
//! thread waits for no single client.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

use super::protocol::{MAX_REQUEST, encode_reply};

/// What a server bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at a time.
    pub clients: usize,
    /// How long a connection may last.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { clients: 32, time: Duration::from_secs(5) }
    }
}

/// What is done with a request.
pub enum Answer {
    /// This line is sent.
    Reply(Vec<u8>),
    /// The connection is given to whoever answers by itself, for as long as that takes: it must not keep the caller.
    TakeOver(Box<dyn FnOnce(UnixStream)>),
}

/// Connections accepted, and requests of one client answered, before others are looked at.
const TURN: usize = 16;
/// How long no connection is accepted after that failed, as without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the clients of `listener`, which must not block, until `stop` becomes readable. `answer` is given a request's
/// line.
///
/// # Errors
/// poll(2) fails.
pub fn serve(
    listener: &UnixListener,
    answer: &dyn Fn(&[u8]) -> Answer,
    limits: Limits,
    stop: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut server = Server { listener, answer, limits, clients: Vec::new(), accept_from: Instant::now() };
    while !server.sleep(stop)? {
        server.clients.retain_mut(|client| client.serve(answer));
        server.accept();
    }
    Ok(())
}

struct Server<'a> {
    listener: &'a UnixListener,
    answer: &'a dyn Fn(&[u8]) -> Answer,
    limits: Limits,
    /// In the order in which they came.
    clients: Vec<Client>,
    /// When connections are accepted again.
    accept_from: Instant,
}

impl Server<'_> {
    /// Waits until there is something to do, and closes the connections whose time is up; `true` if `stop` is readable.
    fn sleep(&mut self, stop: BorrowedFd<'_>) -> io::Result<bool> {
        let now = Instant::now();
        self.clients.retain(|client| client.until > now);
        let accepts = self.accept_from <= now;
        let busy = self.clients.iter().any(Client::has_request).then_some(now);
        let next = self.clients.iter().map(|client| client.until).min();
        let accept = (!accepts).then_some(self.accept_from);
        let until = [busy, next, accept].into_iter().flatten().min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(now).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(stop, PollFlags::POLLIN)];
        if accepts {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.clients.iter().map(Client::poll_fd));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn accept(&mut self) {
        if self.accept_from > Instant::now() {
            return;
        }
        for _ in 0..TURN {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "failed to accept a connection");
                    self.accept_from = Instant::now() + ACCEPT_PAUSE;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let Ok(mut client) = Client::new(stream, self.limits.time) else { return };
        // What it has sent already is answered now, before others can take its place.
        if !client.serve(self.answer) {
            return;
        }
        if self.clients.len() >= self.limits.clients {
            self.clients.remove(0);
        }
        self.clients.push(client);
    }
}

/// A connection.
struct Client {
    stream: UnixStream,
    /// When it is closed.
    until: Instant,
    /// What it has sent and is not answered.
    input: Vec<u8>,
    /// What it is to be sent.
    output: Vec<u8>,
    /// Nothing more is read from it.
    closing: bool,
}

impl Client {
    fn new(stream: UnixStream, time: Duration) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let uid = getsockopt(&stream, PeerCredentials)?.uid();
        let input = Vec::new();
        let mut client =
            Client { stream, until: Instant::now() + time, input, output: Vec::new(), closing: false };
        if !may_ask(uid, Uid::effective().as_raw()) {
            client.refuse(format!("user {uid} may not ask: only root and this process's user may"));
        }
        Ok(client)
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let flags = if self.output.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.stream.as_fd(), flags)
    }

    /// Whether a request was received that can be answered now.
    fn has_request(&self) -> bool {
        !self.closing && self.output.is_empty() && self.input.contains(&b'\n')
    }

    /// Reads, answers and writes what is possible without waiting; `false` if the connection is to be closed.
    fn serve(&mut self, answer: &dyn Fn(&[u8]) -> Answer) -> bool {
        let mut has_read = false;
        for _ in 0..TURN {
            match self.write() {
                Ok(true) if self.closing => return false,
                Ok(true) => {}
                Ok(false) => return true,
                Err(_) => return false,
            }
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                match answer(&line[..end]) {
                    Answer::Reply(output) => self.output = output,
                    Answer::TakeOver(take_over) => {
                        if let Ok(stream) = self.stream.try_clone() {
                            take_over(stream);
                        }
                        return false;
                    }
                }
            } else if self.input.len() >= MAX_REQUEST {
                self.refuse(format!("the request is longer than {MAX_REQUEST} bytes"));
            } else if has_read {
                return true;
            } else {
                has_read = true;
                match self.read() {
                    Ok(true) => {}
                    Ok(false) => return true,
                    Err(_) => return false,
                }
            }
        }
        true
    }

    fn refuse(&mut self, message: String) {
        self.output = encode_reply(Err(message));
        self.closing = true;
    }

    /// Reads up to a request's length; `false` if nothing has come.
    fn read(&mut self) -> io::Result<bool> {
        let before = self.input.len();
        self.input.resize(MAX_REQUEST, 0);
        let read = self.stream.read(&mut self.input[before..]);
        self.input.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if is_transient(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the output; `false` if some is left.
    fn write(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Whether a user may ask a process of user `own`.
fn may_ask(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
