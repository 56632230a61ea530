//! The shell around a store: one thread that moves bytes between sockets and the [`Core`].
//!
//! dom0's tools come by a listening socket, whose peers must be root, this process's user, or a user named in the
//! [`Config`]. Domains come by [`StoreHandle::introduce`], each with a socket its broker has made.
//!
//! A slow client costs no one else anything: its requests are not read while the replies to the last ones wait,
//! and if it lets too many watch events wait it is cut off (see [`Core`]).

mod reactor;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_abi::xs_wire::XsError;

use super::Core;
use super::quota::Quotas;
use crate::{Client, DomId};
use reactor::Reactor;

/// How a store is to run.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where to listen for dom0's tools (`DIR/xenstored.sock`); `None` for nowhere. A socket left there by a store
    /// that has ended is replaced.
    pub socket: Option<PathBuf>,
    /// Users that may connect there besides root and this process's own.
    pub users: Vec<u32>,
    /// What domains may have.
    pub quotas: Quotas,
}

impl Config {
    /// Listens at this path, with the usual quotas.
    pub fn at(socket: impl Into<PathBuf>) -> Config {
        Config { socket: Some(socket.into()), ..Config::default() }
    }
}

/// What the handle asks of the thread.
enum Command {
    Introduce(DomId, UnixStream, Sender<Result<(), XsError>>),
    Release(DomId, Sender<Result<(), XsError>>),
    Connect(UnixStream),
    Stop,
}

/// A running store. Dropping it stops the thread, closes all connections, and removes the socket.
pub struct Store {
    handle: StoreHandle,
    thread: Option<JoinHandle<()>>,
    socket: Option<PathBuf>,
}

/// What other threads may ask of a running store.
#[derive(Clone)]
pub struct StoreHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Store {
    /// Starts a store.
    ///
    /// # Errors
    /// The socket cannot be made: another store listens there (EADDRINUSE), or the directory is missing.
    pub fn spawn(config: Config) -> io::Result<Store> {
        let listener = config.socket.as_deref().map(listen).transpose()?;
        let (commands, receiver) = channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let handle = StoreHandle { commands, wake: wake.clone() };
        let mut reactor = Reactor::new(Core::new(config.quotas), listener, config.users, wake)?;
        let run = move || serve(&mut reactor, &receiver);
        let thread = std::thread::Builder::new().name("xenstored".into()).spawn(run)?;
        Ok(Store { handle, thread: Some(thread), socket: config.socket })
    }

    /// A handle for another thread.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// As [`StoreHandle::introduce`].
    ///
    /// # Errors
    /// The same.
    pub fn introduce(&self, domid: DomId, stream: UnixStream) -> io::Result<()> {
        self.handle.introduce(domid, stream)
    }

    /// As [`StoreHandle::release`].
    ///
    /// # Errors
    /// The same.
    pub fn release(&self, domid: DomId) -> io::Result<()> {
        self.handle.release(domid)
    }

    /// As [`StoreHandle::client`].
    ///
    /// # Errors
    /// The same.
    pub fn client(&self) -> io::Result<Client> {
        self.handle.client()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It fails only when the thread has ended already.
        let _ = self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the xenstore thread panicked");
        }
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl StoreHandle {
    /// Takes over a domain's connection to the store; `stream` is the store's end. A domain may have several. When
    /// this returns the domain is introduced.
    ///
    /// # Errors
    /// EINVAL for dom0 and numbers that are no domain's; BrokenPipe when the store has stopped.
    pub fn introduce(&self, domid: DomId, stream: UnixStream) -> io::Result<()> {
        self.ask(|reply| Command::Introduce(domid, stream, reply))
    }

    /// A domain is gone: its connection, watches, transactions and nodes go, and `@releaseDomain` fires.
    ///
    /// # Errors
    /// ENOENT when it was not introduced; BrokenPipe when the store has stopped.
    pub fn release(&self, domid: DomId) -> io::Result<()> {
        self.ask(|reply| Command::Release(domid, reply))
    }

    /// A connection of dom0's without a path in between.
    ///
    /// # Errors
    /// No descriptors left; BrokenPipe when the store has stopped.
    pub fn client(&self) -> io::Result<Client> {
        let (ours, theirs) = UnixStream::pair()?;
        self.connect(theirs)?;
        Ok(Client::new(ours))
    }

    /// Takes over a connection of dom0's; `stream` is the store's end.
    ///
    /// # Errors
    /// BrokenPipe when the store has stopped.
    pub fn connect(&self, stream: UnixStream) -> io::Result<()> {
        self.send(Command::Connect(stream))
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), XsError>>) -> Command) -> io::Result<()> {
        let (reply, answer) = channel();
        self.send(command(reply))?;
        let done = answer.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        done.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        match self.wake.write(1) {
            // EAGAIN: the counter is full, so it is awake.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The thread: until it is told to stop, or every handle is gone.
fn serve(reactor: &mut Reactor, commands: &Receiver<Command>) {
    loop {
        if let Err(e) = reactor.turn() {
            tracing::error!("the xenstore stops: {e}");
            return;
        }
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Introduce(domid, stream, reply) => {
                    // Who asked may have gone meanwhile.
                    let _ = reply.send(reactor.introduce(domid, stream));
                }
                Command::Release(domid, reply) => {
                    let _ = reply.send(reactor.release(domid));
                }
                Command::Connect(stream) => reactor.connect(stream),
                Command::Stop => return,
            }
        }
    }
}

/// Listens at a path, over a socket that nobody listens at any more.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}
