//! The loop that moves bytes between clients' sockets and an export's blocks: one thread, many requests in flight for
//! each client.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Blocks, Op, Outcome, Session};

/// Clients that may have the export open at a time, each of which may have 8 MiB in flight. Further ones are refused.
const MAX_CLIENTS: usize = 64;
/// Clients that are connected at a time: some more, which negotiate or are told that they are refused. Further ones wait to be accepted, or
/// take the place of one that is silent.
const MAX_CONNECTED: usize = MAX_CLIENTS + 8;
/// How long a client may take for its handshake when others wait for its place.
const CROWDED_HANDSHAKE: Duration = Duration::from_millis(200);
/// Bytes read from a client by one system call.
const CHUNK: usize = 256 << 10;
/// How long a client may take for its handshake, as in qemu-nbd (`handshake-limit`), in [`serve`]'s usual case.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `blocks` to the clients of `listener` until `stop` becomes readable, and then closes their connections. A
/// client that has not finished its handshake within `handshake_timeout`, or not taken the last replies that long after
/// it ended its session, is disconnected: it would keep others out.
///
/// # Errors
/// The blocks cannot be used any more, or poll(2) fails.
pub fn serve(
    listener: &UnixListener,
    blocks: &mut dyn Blocks,
    handshake_timeout: Duration,
    stop: BorrowedFd<'_>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let clients = HashMap::new();
    let waiting = VecDeque::new();
    let mut server = Server { blocks, handshake_timeout, clients, in_use: false, waiting, last_id: 0 };
    let mut chunk = vec![0; CHUNK];
    while !server.sleep(listener, stop)? {
        server.accept(listener);
        server.read(&mut chunk);
        // Repeated while there is progress: a completion makes room for a request that was parsed already.
        while server.submit() | server.complete()? {}
        server.write();
        server.expire();
        server.update_use()?;
    }
    Ok(())
}

struct Client {
    stream: UnixStream,
    session: Session,
    connected: Instant,
    /// When it is disconnected, while it negotiates and after it has ended its session.
    deadline: Option<Instant>,
}

struct Server<'a> {
    blocks: &'a mut dyn Blocks,
    handshake_timeout: Duration,
    clients: HashMap<u64, Client>,
    /// Whether a client has finished its handshake.
    in_use: bool,
    /// Requests that the blocks did not take yet.
    waiting: VecDeque<(u64, Op)>,
    /// The id given last, to a client or a request.
    last_id: u64,
}

impl Server<'_> {
    /// Waits until a socket or the blocks are ready; `true` if `stop` is readable.
    fn sleep(&mut self, listener: &UnixListener, stop: BorrowedFd<'_>) -> io::Result<bool> {
        let timeout = if self.blocks.arm()? { PollTimeout::ZERO } else { self.timeout() };
        let mut fds =
            vec![PollFd::new(stop, PollFlags::POLLIN), PollFd::new(self.blocks.fd(), PollFlags::POLLIN)];
        if self.has_place() {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.clients.values().filter_map(Client::poll_fd));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(e) => Err(e.into()),
        }
    }

    /// The time until a client is to be disconnected, or another one may have its place.
    fn timeout(&self) -> PollTimeout {
        let deadlines = self.clients.values().filter_map(|client| client.deadline);
        let place = self.silent().filter(|_| !self.has_place()).map(|(_, since)| since + CROWDED_HANDSHAKE);
        deadlines.chain(place).min().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        })
    }

    /// Of the clients that have not finished their handshake the one that has been there longest, and since when.
    fn silent(&self) -> Option<(u64, Instant)> {
        let negotiating = self.clients.iter().filter(|(_, client)| !client.session.is_negotiated());
        negotiating.map(|(id, client)| (*id, client.connected)).min_by_key(|(_, connected)| *connected)
    }

    /// Whether a new client has a place, be it that of a silent one.
    fn has_place(&self) -> bool {
        self.clients.len() < MAX_CONNECTED
            || self.silent().is_some_and(|(_, since)| since.elapsed() >= CROWDED_HANDSHAKE)
    }

    /// Tells the blocks when the first client has opened the export, and when the last one has closed it.
    fn update_use(&mut self) -> io::Result<()> {
        let in_use = self.clients.values().any(|client| client.session.is_negotiated());
        if in_use != self.in_use {
            self.in_use = in_use;
            self.blocks.set_in_use(in_use)?;
        }
        Ok(())
    }

    /// Disconnects clients whose time is up.
    fn expire(&mut self) {
        for client in self.clients.values_mut() {
            match (client.deadline, client.session.is_negotiated() && !client.session.is_ended()) {
                (Some(_), true) => client.deadline = None,
                (None, false) => client.deadline = Some(Instant::now() + self.handshake_timeout),
                _ => {}
            }
        }
        self.clients.retain(|_, client| client.deadline.is_none_or(|deadline| Instant::now() < deadline));
    }

    fn accept(&mut self, listener: &UnixListener) {
        while self.has_place() {
            let Ok((stream, _)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                if self.clients.len() == MAX_CONNECTED
                    && let Some((silent, _)) = self.silent()
                {
                    self.clients.remove(&silent);
                }
                self.last_id += 1;
                let connected = Instant::now();
                let deadline = Some(connected + self.handshake_timeout);
                self.clients
                    .insert(self.last_id, Client { stream, session: Session::new(), connected, deadline });
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8]) {
        for client in self.clients.values_mut() {
            client.read(chunk);
        }
    }

    /// Submits requests to the blocks: those that waited, then each client's. `true` if any was taken.
    fn submit(&mut self) -> bool {
        let mut taken = false;
        while let Some((id, op)) = self.waiting.pop_front() {
            if let Err(op) = self.blocks.submit(id, op) {
                self.waiting.push_front((id, op));
                return taken;
            }
            taken = true;
        }
        let mut open = self.clients.values().filter(|client| client.has_open()).count();
        for client in self.clients.values_mut() {
            client.session.set_full((open >= MAX_CLIENTS).then_some(MAX_CLIENTS));
            let had_open = client.has_open();
            while self.waiting.is_empty() {
                let id = self.last_id + 1;
                let Some(op) = client.session.next(self.blocks.export(), id) else { break };
                self.last_id = id;
                match self.blocks.submit(id, op) {
                    Ok(()) => taken = true,
                    Err(op) => self.waiting.push_back((id, op)),
                }
            }
            open += usize::from(!had_open && client.has_open());
        }
        taken
    }

    /// Replies to requests that have completed; `true` if there were any.
    fn complete(&mut self) -> io::Result<bool> {
        let mut completed: Vec<(u64, Outcome)> = Vec::new();
        self.blocks.poll(&mut completed)?;
        let any = !completed.is_empty();
        for (id, outcome) in completed {
            // No client has the request if its connection was closed.
            if let Some(client) = self.clients.values_mut().find(|client| client.session.has(id)) {
                client.session.complete(id, outcome);
            }
        }
        Ok(any)
    }

    fn write(&mut self) {
        self.clients.retain(|_, client| client.write().is_ok() && !client.session.is_finished());
    }
}

impl Client {
    fn has_open(&self) -> bool {
        self.session.is_negotiated() && !self.session.is_ended()
    }

    /// Returns what to poll for; `None` if nothing is to be read or written, as POLLHUP would end every poll.
    fn poll_fd(&self) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.session.wants_input());
        flags.set(PollFlags::POLLOUT, !self.session.unsent().is_empty());
        (!flags.is_empty()).then(|| PollFd::new(self.stream.as_fd(), flags))
    }

    fn read(&mut self, chunk: &mut [u8]) {
        while self.session.wants_input() {
            match self.stream.read(chunk) {
                Ok(0) => self.session.end(),
                Ok(len) => {
                    self.session.receive(&chunk[..len]);
                    if len < chunk.len() {
                        return;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.session.end(),
            }
        }
    }

    /// Sends output while the socket takes it; an error if the connection is closed.
    fn write(&mut self) -> io::Result<()> {
        while !self.session.unsent().is_empty() {
            match self.stream.write(self.session.unsent()) {
                Ok(len) => self.session.sent(len),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
