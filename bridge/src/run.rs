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
use event_loop::Counter;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    BridgeInfo, BridgeSetting, Capture, CaptureOptions, Config, Error, FdbEntry, FdbFilter, Forwarding,
    Mirror, MirrorInfo, Port, PortSettings, Setting,
    command::{Awaited, Command, FdbRow, PortInfo},
    fdb::Mac,
    worker::Worker,
};

/// A running bridge: one thread that owns its ports. Dropping it stops the thread and drops the ports. The process aborts if the
/// thread panics.
///
/// Frames of a detached port that are queued in other ports keep their pages by their pins, and so the port's memory,
/// until they are sent or dropped; the caller need not wait for that.
#[derive(Debug)]
pub struct Bridge {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    longest_turn_ns: Arc<Counter>,
    thread: Option<JoinHandle<()>>,
    is_wire: bool,
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
        let longest_turn_ns = worker.longest_turn_ns();
        let thread = std::thread::Builder::new().name(config.name.clone());
        let thread = thread.spawn(move || worker.run()).map_err(os("failed to start its thread"))?;
        let is_wire = matches!(config.forwarding, Forwarding::Wire);
        Ok(Bridge { commands, wake, longest_turn_ns, thread: Some(thread), is_wire })
    }

    /// Adds a port with a unique name, which may send anything. A port that fails later is removed and dropped, with a log line.
    pub fn attach(&self, name: &str, port: Box<dyn Port>) -> Result<(), Error> {
        self.attach_with(name, port, PortSettings::default())
    }

    /// Adds a port as [`Bridge::attach`] does, with settings that are in force from its first frame on.
    pub fn attach_with(&self, name: &str, port: Box<dyn Port>, settings: PortSettings) -> Result<(), Error> {
        self.call(|reply| Command::Attach(name.into(), port, settings, reply))?
    }

    /// Changes one of a port's settings.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`], [`Error::Stopped`].
    pub fn set(&self, name: &str, setting: Setting) -> Result<(), Error> {
        self.call(|reply| Command::Set(name.into(), setting, reply))?
    }

    /// Captures the frames that cross a port from now on, until the capture is dropped or the port removed. Of several captures at a
    /// time each has all frames.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`], [`Error::TooManyCaptures`], [`Error::Stopped`].
    pub fn capture(&self, name: &str, options: CaptureOptions) -> Result<Capture, Error> {
        self.call(|reply| Command::Capture(name.into(), options, reply))?
    }

    /// Removes a port, flushes it and returns it; it can be attached again.
    pub fn detach(&self, name: &str) -> Result<Box<dyn Port>, Error> {
        self.call(|reply| Command::Detach(name.into(), reply))?
    }

    /// Whether it is a wire.
    pub fn is_wire(&self) -> bool {
        self.is_wire
    }

    /// Reads the ports, their counters and settings.
    pub fn ports(&self) -> Result<Vec<PortInfo>, Error> {
        self.call(Command::Ports)
    }

    /// Reads the forwarding database.
    pub fn fdb(&self) -> Result<Vec<FdbRow>, Error> {
        self.call(Command::Fdb)
    }

    /// Adds an entry to the forwarding database, as `bridge fdb add` does. It is there until it is deleted, it expires (where its kind
    /// does) or the port is removed.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`]; [`Error::Fdb`] with the reason: no entry was changed. [`Error::Wire`], [`Error::Stopped`].
    pub fn fdb_add(&self, entry: FdbEntry) -> Result<(), Error> {
        self.call(|reply| Command::FdbAdd(entry, false, reply))?
    }

    /// Adds an entry as [`Bridge::fdb_add`] does, in the place of one of the same address and VLAN if there is any: `bridge fdb replace`.
    ///
    /// # Errors
    /// Those of [`Bridge::fdb_add`].
    pub fn fdb_replace(&self, entry: FdbEntry) -> Result<(), Error> {
        self.call(|reply| Command::FdbAdd(entry, true, reply))?
    }

    /// Removes an entry of a port from the forwarding database, also one that was learned; without a VLAN in each of the port's.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`]; [`Error::Fdb`] where there is none, or the address is a port's own. [`Error::Wire`], [`Error::Stopped`].
    pub fn fdb_delete(&self, mac: Mac, vlan: Option<u16>, port: &str) -> Result<(), Error> {
        self.call(|reply| Command::FdbDelete(mac, vlan, port.into(), reply))?
    }

    /// Removes entries from the forwarding database, but ports' own addresses; returns their number. As `bridge fdb flush` it removes those
    /// that were given too, unless the filter names a kind.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`], [`Error::Wire`], [`Error::Stopped`].
    pub fn fdb_flush(&self, filter: FdbFilter) -> Result<usize, Error> {
        self.call(|reply| Command::FdbFlush(filter, reply))?
    }

    /// Changes one of the bridge's settings.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Wire`], [`Error::Stopped`].
    pub fn set_bridge(&self, setting: BridgeSetting) -> Result<(), Error> {
        self.call(|reply| Command::SetBridge(setting, reply))?
    }

    /// Reads the bridge's settings.
    ///
    /// # Errors
    /// [`Error::Wire`], [`Error::Stopped`].
    pub fn info(&self) -> Result<BridgeInfo, Error> {
        self.call(Command::Info)?
    }

    /// Adds a mirror. The ports that it names must be there; one that is selected may go, and its frames are copied again when a port of its
    /// name has come.
    ///
    /// # Errors
    /// [`Error::NoSuchPort`], [`Error::Mirror`], [`Error::Wire`], [`Error::Stopped`].
    pub fn mirror_add(&self, name: &str, mirror: Mirror) -> Result<(), Error> {
        self.call(|reply| Command::MirrorAdd(name.into(), mirror, reply))?
    }

    /// Removes a mirror: its output port is as any other then.
    ///
    /// # Errors
    /// [`Error::Mirror`], [`Error::Stopped`].
    pub fn mirror_delete(&self, name: &str) -> Result<(), Error> {
        self.call(|reply| Command::MirrorDelete(name.into(), reply))?
    }

    /// Reads the mirrors and their counters.
    pub fn mirrors(&self) -> Result<Vec<MirrorInfo>, Error> {
        self.call(Command::Mirrors)
    }

    /// Gives a port what it had in an earlier process: now, or when a port of its name is attached. One with another address does not get it.
    ///
    /// # Errors
    /// The port is there, and it cannot be given that; [`Error::Wire`], [`Error::Stopped`].
    pub fn give_again(&self, awaited: Awaited) -> Result<(), Error> {
        self.call(|reply| Command::GiveAgain(awaited, reply))?
    }

    /// What waits for its port.
    pub fn awaited(&self) -> Result<Vec<Awaited>, Error> {
        self.call(Command::Awaited)
    }

    /// The longest round of all ports' turns, in processor time of the bridge's thread; up to 200 us more than it was, and zero
    /// while there was none as long as that.
    pub fn longest_turn(&self) -> Duration {
        Duration::from_nanos(self.longest_turn_ns.get())
    }

    /// The counter of [`Bridge::longest_turn`], in nanoseconds.
    pub fn longest_turn_ns(&self) -> &Arc<Counter> {
        &self.longest_turn_ns
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
        if let Some(thread) = self.thread.take() {
            // The process has ended if the worker panicked.
            let _ = thread.join();
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.end();
    }
}
