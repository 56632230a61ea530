// Not a core: does I/O or calls a hypervisor.

//! Runs a store: one thread moves bytes between sockets and the [`Core`].
//!
//! dom0's tools connect to a listening socket, whose peers must be root, this process's user, or a user named in the
//! [`Config`]. Domains are connected with [`StoreHandle::introduce`], each by a socket that the caller makes.
//!
//! A slow client does not delay others: its requests are not read while the replies to earlier ones are unsent, and its
//! connection is closed when too many watch events are unsent (see [`Core`]). Nor does a domain with many connections and
//! requests without end: every turn of the loop takes a few milliseconds, in which dom0's requests and the commands of the
//! [`StoreHandle`] are served, and those of each domain in turn.

mod keeper;
mod reactor;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use event_loop::{Connector, Essential, LongestTurn, Stream};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::xs_wire::XsError;

use super::quota::Quotas;
use super::{Core, Image};
use crate::{Client, DomId};
use keeper::Keeper;
use reactor::Reactor;

/// The configuration of a store.
#[derive(Debug, Default)]
pub struct Config {
    /// The path of the socket for dom0's tools (`DIR/xenstored.sock`); `None` for no socket. The socket of a store that
    /// no longer runs is replaced.
    pub socket: Option<PathBuf>,
    /// Users that may connect there besides root and this process's user.
    pub users: Vec<u32>,
    /// The quotas of new domains.
    pub quotas: Quotas,
    /// Where what the store holds is kept for a successor in case this process is killed; `None`: nowhere. The file is removed
    /// when the store is stopped.
    pub state: Option<PathBuf>,
    /// What a store held that was killed, for this one to go on with.
    pub predecessor: Option<Image>,
}

impl Config {
    /// A configuration with this socket and the default quotas.
    pub fn at(socket: impl Into<PathBuf>) -> Config {
        Config { socket: Some(socket.into()), ..Config::default() }
    }
}

/// A value that the store drops once a connection is closed, by which its owner knows that it is.
pub type Lease = Box<dyn Send>;

/// A command of the handle to the thread.
enum Command {
    Introduce(DomId, UnixStream, Lease, Sender<Result<(), XsError>>),
    Release(DomId, Sender<Result<(), XsError>>),
    Connect(UnixStream),
    Stop,
}

/// Most commands of one turn.
const COMMANDS: usize = 16;

/// A running store. Dropping it stops the thread, closes all connections, and removes the socket.
pub struct Store {
    handle: StoreHandle,
    thread: Option<JoinHandle<()>>,
    socket: Option<PathBuf>,
    state: Option<PathBuf>,
}

/// Controls a running store from any thread.
#[derive(Clone)]
pub struct StoreHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    longest_turn: LongestTurn,
}

impl Store {
    /// Starts a store.
    ///
    /// # Errors
    /// `bind` fails: EADDRINUSE when another store listens there, ENOENT when the directory is missing. The eventfd,
    /// the epoll set or the thread cannot be created.
    pub fn spawn(config: Config) -> io::Result<Store> {
        let listener = config.socket.as_deref().map(listen).transpose()?;
        let (commands, receiver) = channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let mut core = match config.predecessor {
            Some(image) => Core::restore(image, config.quotas),
            None => Core::new(config.quotas),
        };
        let create = |path: &PathBuf| Keeper::create(path, &core.keep(), wake.clone());
        let keeper = config.state.as_ref().map(create).transpose()?;
        let longest_turn = core.longest_turn();
        let handle = StoreHandle { commands, wake: wake.clone(), longest_turn: longest_turn.clone() };
        let mut reactor = Reactor::new(core, listener, config.users, wake, keeper)?;
        let run = move || {
            let _essential = Essential;
            serve(&mut reactor, &receiver, &longest_turn)
        };
        let thread = std::thread::Builder::new().name("xenstored".into()).spawn(run)?;
        Ok(Store { handle, thread: Some(thread), socket: config.socket, state: config.state })
    }

    /// Makes a handle for another thread.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Stops as if its process were killed: what it held is kept for a successor.
    pub fn hand_over(mut self) {
        self.state = None;
    }

    /// Connects a domain. See [`StoreHandle::introduce`].
    pub fn introduce(&self, domid: DomId, stream: UnixStream) -> io::Result<()> {
        self.handle.introduce(domid, stream)
    }

    /// Releases a domain. See [`StoreHandle::release`].
    pub fn release(&self, domid: DomId) -> io::Result<()> {
        self.handle.release(domid)
    }

    /// Makes a client of dom0. See [`StoreHandle::client`].
    pub fn client(&self) -> io::Result<Client> {
        self.handle.client()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Fails only when the thread has ended already.
        let _ = self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // The process has ended if it panicked.
            let _ = thread.join();
        }
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
        if let Some(state) = &self.state {
            keeper::remove(state);
        }
    }
}

impl StoreHandle {
    /// Connects a domain; `stream` is the store's end. A domain may have several connections. On return the domain is
    /// introduced.
    ///
    /// # Errors
    /// EINVAL for dom0 and reserved numbers, ENOSPC for too many connections, EIO when the stream cannot be polled;
    /// BrokenPipe when the store has stopped.
    pub fn introduce(&self, domid: DomId, stream: UnixStream) -> io::Result<()> {
        self.introduce_with(domid, stream, Box::new(()))
    }

    /// Connects a domain as [`StoreHandle::introduce`] does. `lease` is dropped once the connection is closed, also
    /// where this call fails.
    ///
    /// # Errors
    /// As [`StoreHandle::introduce`].
    pub fn introduce_with(&self, domid: DomId, stream: UnixStream, lease: Lease) -> io::Result<()> {
        self.call(|reply| Command::Introduce(domid, stream, lease, reply))
    }

    /// Releases a domain: its connections, watches, transactions and nodes are removed, and `@releaseDomain` fires.
    ///
    /// # Errors
    /// ENOENT when it was not introduced; BrokenPipe when the store has stopped.
    pub fn release(&self, domid: DomId) -> io::Result<()> {
        self.call(|reply| Command::Release(domid, reply))
    }

    /// Makes a client of dom0 over a socket pair.
    ///
    /// # Errors
    /// EMFILE or ENFILE of `socketpair`; BrokenPipe when the store has stopped.
    pub fn client(&self) -> io::Result<Client> {
        let (ours, theirs) = UnixStream::pair()?;
        self.connect(theirs)?;
        Ok(Client::new(ours))
    }

    /// Adds a connection of dom0; `stream` is the store's end.
    ///
    /// # Errors
    /// BrokenPipe when the store has stopped.
    pub fn connect(&self, stream: UnixStream) -> io::Result<()> {
        self.send(Command::Connect(stream))
    }

    /// The longest turn of the store's loop so far, by its thread's processor time.
    pub fn longest_turn(&self) -> LongestTurn {
        self.longest_turn.clone()
    }

    fn call(&self, command: impl FnOnce(Sender<Result<(), XsError>>) -> Command) -> io::Result<()> {
        let (sender, reply) = channel();
        self.send(command(sender))?;
        let done = reply.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        done.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        match self.wake.write(1) {
            // EAGAIN: the counter is full, so the thread is awake.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl Connector for StoreHandle {
    /// Connects as dom0, over a socket pair.
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = UnixStream::pair()?;
        self.connect(theirs)?;
        Ok(Box::new(ours))
    }
}

/// Runs the thread until a Stop command or a failure of epoll.
fn serve(reactor: &mut Reactor, commands: &Receiver<Command>, longest_turn: &LongestTurn) {
    loop {
        let events = match reactor.wait() {
            Ok(events) => events,
            Err(error) => return tracing::error!(%error, "failed to poll; the xenstore stops"),
        };
        let turn = longest_turn.begin();
        reactor.serve(&events, &turn);
        for n in 0.. {
            if n == COMMANDS {
                reactor.return_soon();
                break;
            }
            match commands.try_recv() {
                Ok(Command::Introduce(domid, stream, lease, reply)) => {
                    // Fails only when the caller's thread has ended.
                    let _ = reply.send(reactor.introduce(domid, stream, lease));
                }
                Ok(Command::Release(domid, reply)) => {
                    let _ = reply.send(reactor.release(domid));
                }
                Ok(Command::Connect(stream)) => reactor.connect(stream),
                Ok(Command::Stop) => return,
                Err(_) => break,
            }
        }
    }
}

/// Listens at a path, and replaces a socket there that refuses connections.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}
