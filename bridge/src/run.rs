// Not a core: does I/O or calls a hypervisor.

//! A running bridge, controlled from other threads: attaches and detaches ports by name, reads counters and stations.

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

/// The configuration of a bridge.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bridge's name in the log, and that of its worker thread.
    pub name: String,
    /// Most frames received from one port before the next port is served; 64 to 256 is sensible.
    pub burst: usize,
    /// How long a port without frames is polled before it is armed, as Linux's `net.core.busy_poll`.
    pub busy_poll: Duration,
    /// The bounds of the forwarding database.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "bridge".into(),
            burst: 64,
            busy_poll: Duration::from_micros(20),
            limits: Limits::default(),
        }
    }
}

/// The errors of a bridge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port with this name exists; names are unique within a bridge.
    #[error("the bridge has a port named {0:?} already")]
    NameTaken(String),
    /// No port has this name. It may have been removed because it failed, which is logged.
    #[error("the bridge has no port named {0:?}")]
    NoSuchPort(String),
    /// The bridge has 65,536 ports.
    #[error("the bridge has too many ports to attach {0:?}")]
    TooManyPorts(String),
    /// The worker thread has ended.
    #[error("the bridge has stopped")]
    Stopped,
    /// A system call failed. The text has the cause, which is therefore not the error's `source` as well.
    #[error("{what}: {error}")]
    Os {
        /// The operation.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

/// A port's state, for display.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// The name that the port was attached with.
    pub name: String,
    /// The port's counters.
    pub counters: Counters,
}

/// An entry of the forwarding database, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The station's address.
    pub mac: Mac,
    /// The name of the port at which it was last seen.
    pub port: String,
    /// Seconds since then.
    pub age_s: u32,
}

/// A command to the worker, with the channel for its reply.
pub(crate) enum Command {
    Attach(String, Box<dyn Port>, Sender<Result<(), Error>>),
    Detach(String, Sender<Result<Box<dyn Port>, Error>>),
    Ports(Sender<Vec<PortInfo>>),
    Fdb(Sender<Vec<FdbRow>>),
    Stop,
}

/// A running bridge: one thread that owns its ports. Dropping it stops the thread and drops the ports.
///
/// Frames of a detached port that are queued in other ports keep their pages by their pins, and so the port's memory,
/// until they are sent or dropped; the caller need not wait for that.
#[derive(Debug)]
pub struct Bridge {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    /// Starts a bridge without ports.
    ///
    /// # Errors
    /// [`Error::Os`] when the eventfd, the epoll set or the thread cannot be created.
    pub fn start(config: Config) -> Result<Bridge, Error> {
        let os = |what: &str| {
            let what = format!("bridge {:?}: {what}", config.name);
            move |error: io::Error| Error::Os { what, error }
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|errno| os("eventfd")(errno.into()))?;
        let wake = Arc::new(wake);
        let (commands, receiver) = channel::unbounded();
        let seed = RandomState::new().build_hasher().finish();
        let worker = Worker::new(&config, seed, receiver, wake.clone()).map_err(os("epoll"))?;
        let thread = std::thread::Builder::new().name(config.name.clone());
        let thread = thread.spawn(move || worker.run()).map_err(os("failed to start its thread"))?;
        Ok(Bridge { commands, wake, thread: Some(thread) })
    }

    /// Adds a port with a unique name. A port that fails later is removed and dropped, with a log line.
    pub fn attach(&self, name: &str, port: Box<dyn Port>) -> Result<(), Error> {
        self.call(|reply| Command::Attach(name.into(), port, reply))?
    }

    /// Removes a port, flushes it and returns it; it can be attached again.
    pub fn detach(&self, name: &str) -> Result<Box<dyn Port>, Error> {
        self.call(|reply| Command::Detach(name.into(), reply))?
    }

    /// Reads the ports and their counters.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        self.call(Command::Ports)
    }

    /// Reads the forwarding database.
    pub fn fdb(&self) -> Result<Vec<FdbRow>, Error> {
        self.call(Command::Fdb)
    }

    /// Stops the worker, and waits until it has dropped its ports.
    pub fn stop(mut self) {
        self.end();
    }

    fn call<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Error> {
        let (sender, reply): (Sender<T>, Receiver<T>) = channel::bounded(1);
        self.commands.send(command(sender)).map_err(|_| Error::Stopped)?;
        let _ = self.wake.write(1);
        reply.recv().map_err(|_| Error::Stopped)
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
