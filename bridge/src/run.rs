//! A running bridge, as other threads see it: ports are attached and detached by name, tables are read.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam::channel::{self, Receiver, Sender};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    Counters, Port,
    fdb::{Limits, Mac},
    worker::Worker,
};

/// How a bridge is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name: of the worker thread, and in the log.
    pub name: String,
    /// Most frames taken from a port before the next port's turn; 64 to 256 is sensible.
    pub burst: usize,
    /// How long a port that has gone quiet is still polled before it is left to its notification.
    pub spin: Duration,
    /// Bounds of the forwarding database.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "bridge".into(),
            burst: 64,
            spin: Duration::from_micros(20),
            limits: Limits::default(),
        }
    }
}

/// Why a bridge could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Names are unique within a bridge.
    #[error("the bridge has a port named {0:?} already")]
    NameTaken(String),
    /// It may have been removed because it failed: the log says so.
    #[error("the bridge has no port named {0:?}")]
    NoSuchPort(String),
    /// There are 65,536.
    #[error("the bridge has no place left for port {0:?}")]
    NoPlace(String),
    /// The worker thread has ended.
    #[error("the bridge has stopped")]
    Stopped,
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A port as shown to people.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The name it was attached by.
    pub name: String,
    /// What has gone through it.
    pub counters: Counters,
}

/// An entry of the forwarding database as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The station's address.
    pub mac: Mac,
    /// The name of the port it was last heard from.
    pub port: String,
    /// How long ago, in seconds.
    pub age_s: u32,
}

/// What the worker is asked, with the way to answer.
pub(crate) enum Command {
    Attach(String, Box<dyn Port>, Sender<Result<(), Error>>),
    Detach(String, Sender<Result<Box<dyn Port>, Error>>),
    Ports(Sender<Vec<PortInfo>>),
    Fdb(Sender<Vec<FdbRow>>),
    Stop,
}

/// A running bridge: one thread that owns its ports. Dropping it stops it and drops the ports.
///
/// Frames of a detached port that are queued in other ports keep their pages by their pins, and so the
/// port's memory, until they have been sent or dropped; nothing need be waited for.
#[derive(Debug)]
pub struct Bridge {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    /// Starts a bridge without ports.
    pub fn start(config: Config) -> Result<Bridge, Error> {
        let os = |what: &str| {
            let what = format!("bridge {:?}: {what}", config.name);
            move |source: io::Error| Error::Os { what, source }
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|errno| os("eventfd")(errno.into()))?;
        let wake = Arc::new(wake);
        let (commands, inbox) = channel::unbounded();
        let seed = RandomState::new().build_hasher().finish();
        let worker = Worker::new(&config, seed, inbox, wake.clone()).map_err(os("epoll"))?;
        let thread = std::thread::Builder::new().name(config.name.clone());
        let thread = thread.spawn(move || worker.run()).map_err(os("cannot start its thread"))?;
        Ok(Bridge { commands, wake, thread: Some(thread) })
    }

    /// Adds a port under a name of its own. Should it fail later, it is removed and dropped, and logged.
    pub fn attach(&self, name: &str, port: Box<dyn Port>) -> Result<(), Error> {
        self.ask(|answer| Command::Attach(name.into(), port, answer))?
    }

    /// Takes a port out and gives it back, flushed; it can be attached again.
    pub fn detach(&self, name: &str) -> Result<Box<dyn Port>, Error> {
        self.ask(|answer| Command::Detach(name.into(), answer))?
    }

    /// The ports as they stand.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        self.ask(Command::Ports)
    }

    /// The forwarding database as it stands.
    pub fn fdb(&self) -> Result<Vec<FdbRow>, Error> {
        self.ask(Command::Fdb)
    }

    /// Stops the worker and waits until it has dropped its ports.
    pub fn stop(mut self) {
        self.end();
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Error> {
        let (answer, question): (Sender<T>, Receiver<T>) = channel::bounded(1);
        self.commands.send(command(answer)).map_err(|_| Error::Stopped)?;
        let _ = self.wake.write(1);
        question.recv().map_err(|_| Error::Stopped)
    }

    fn end(&mut self) {
        let _ = self.commands.send(Command::Stop);
        let _ = self.wake.write(1);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a bridge's worker panicked");
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.end();
    }
}
