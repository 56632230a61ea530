//! Asks the dom0 of a machine. Commands work without one: whoever does not answer in time is taken for absent.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::protocol::{DeviceId, ImageQuery, MAX_REPLY, Request, StatsQuery, TotalsQuery, parse_reply};
use crate::dir::Dir;
use crate::error::{Error, Result, chain};

/// How long one reply may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections tried: a busy server may close one before it has answered.
const TRIES: usize = 3;

/// A device of dom0's, as in the reply to `stats`.
#[derive(Clone, Debug, Deserialize)]
pub struct Device {
    /// Which device.
    #[serde(flatten)]
    pub id: DeviceId,
    /// Why it is not served, or why its last connection was closed.
    pub error: Option<String>,
    /// Its limits in force, by the names of their keys; `None` if they are another program's, or not told by an earlier version.
    #[serde(default)]
    pub limits: Option<Map<String, Value>>,
    /// Its counters, as `docs/control.md` describes them; `None` if they are another program's.
    pub stats: Option<Value>,
}

/// A domain with devices of dom0's, as in the reply to `totals`.
#[derive(Clone, Debug, Deserialize)]
pub struct Domain {
    /// Its number.
    pub domid: u16,
    /// By kind, how many devices it has and the sums of their counters.
    pub stats: Value,
}

/// The reply to `image`.
#[derive(Clone, Debug, Deserialize)]
pub struct ImageReply {
    /// The disk's image; `None` if it is raw.
    pub image: Option<ServedImage>,
    /// The last change of it.
    pub job: Option<ServedJob>,
}

/// An image that is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServedImage {
    /// The disk's length.
    pub bytes: u64,
    /// The image, and those below it.
    pub layers: Vec<PathBuf>,
    /// The image's file; `None` if it is not told, as by earlier versions.
    pub file: Option<ImageFile>,
}

/// Which file an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageFile {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

/// A change of an image.
#[derive(Clone, Debug, Deserialize)]
pub struct ServedJob {
    /// Its number.
    pub id: u64,
    /// It is not made yet.
    pub runs: bool,
    /// Why it could not be made.
    pub error: Option<String>,
    /// Of one that takes long, bytes of the disk that are seen to.
    #[serde(default)]
    pub done: Option<u64>,
    /// Of one that takes long, bytes of the disk; 0 before it has begun.
    #[serde(default)]
    pub total: Option<u64>,
}

#[derive(Deserialize)]
struct DevicesReply {
    domid: u16,
    devices: Vec<Device>,
    next: Option<DeviceId>,
}

#[derive(Deserialize)]
struct DomainsReply {
    domid: u16,
    domains: Vec<Domain>,
    next: Option<u16>,
    /// Not told by earlier versions.
    #[serde(default)]
    longest_turn_us: BTreeMap<String, u64>,
}

/// What a dom0 has counted for domains, and for itself.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The domain that serves.
    pub domid: u16,
    /// The sums of the counters of each domain's devices.
    pub domains: Vec<Domain>,
    /// The longest turn of each kind's control loop, in microseconds of its thread's processor time.
    pub longest_turn_us: BTreeMap<String, u64>,
}

/// The devices that a dom0 serves, and its domain.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// The domain that serves them; `None` if no dom0 answers.
    pub domid: Option<u16>,
    /// The devices.
    pub devices: Vec<Device>,
}

impl Served {
    /// The device of this kind and number, of the domain that was asked for.
    pub fn find(&self, kind: &str, devid: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.id.kind == kind && device.id.devid == devid)
    }
}

/// The devices of a frontend's domain that the dom0 in `dir` serves; none if it does not answer. A dom0 that answers with an
/// error is logged.
pub fn devices(dir: &Dir, domid: u16) -> Served {
    logged(dir, || ask_devices(dir, domid))
}

/// What the dom0 in `dir` has counted, by domain; `None` if it does not answer, as [`devices`].
pub fn totals(dir: &Dir) -> Option<Totals> {
    logged(dir, || ask_totals(dir).map(Some))
}

/// A disk's image, and what is begun to change it, of the dom0 in `dir`.
///
/// # Errors
/// [`Error::File`] or [`Error::Io`] if it does not answer, [`Error::Other`] with its error.
pub fn image(dir: &Dir, query: &ImageQuery) -> Result<ImageReply> {
    Connection::open(dir)?.call(&Request::Image(query.clone()))
}

/// Logs why there is no answer, unless no dom0 listens.
fn logged<T: Default>(dir: &Dir, ask: impl Fn() -> Result<T>) -> T {
    let answer = (1..TRIES).find_map(|_| match ask() {
        Err(Error::Io { source, .. }) if is_closed(&source) => None,
        answer => Some(answer),
    });
    let error = match answer.unwrap_or_else(&ask) {
        Ok(answer) => return answer,
        Err(error) => error,
    };
    match &error {
        Error::File { source, .. } if is_absent(source) => {}
        _ => {
            tracing::warn!(socket = %dir.control().display(), error = %chain(&error), "dom0 does not answer")
        }
    }
    T::default()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn ask_devices(dir: &Dir, domid: u16) -> Result<Served> {
    let mut connection = Connection::open(dir)?;
    let mut served = Served::default();
    let mut query = StatsQuery { domid: Some(domid), ..StatsQuery::default() };
    loop {
        let reply: DevicesReply = connection.call(&Request::Stats(query.clone()))?;
        served.domid = Some(reply.domid);
        served.devices.extend(reply.devices);
        // A server that does not go on is not asked for ever.
        if reply.next.is_none() || reply.next <= query.after {
            return Ok(served);
        }
        query.after = reply.next;
    }
}

fn ask_totals(dir: &Dir) -> Result<Totals> {
    let mut connection = Connection::open(dir)?;
    let mut totals = Totals::default();
    let mut query = TotalsQuery::default();
    loop {
        let reply: DomainsReply = connection.call(&Request::Totals(query.clone()))?;
        totals.domid = reply.domid;
        totals.domains.extend(reply.domains);
        totals.longest_turn_us = reply.longest_turn_us;
        if reply.next.is_none() || reply.next <= query.after {
            return Ok(totals);
        }
        query.after = reply.next;
    }
}

/// A connection to the control socket.
pub struct Connection {
    stream: UnixStream,
    /// Bytes received behind the last reply.
    received: Vec<u8>,
}

impl Connection {
    /// Connects to the dom0 that serves a machine.
    ///
    /// # Errors
    /// [`Error::File`] if none listens, or none accepts in time.
    pub fn open(dir: &Dir) -> Result<Connection> {
        let path = dir.control();
        let connected = || {
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // Also how long connect(2) may wait.
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0))?;
            connect(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
            Ok(fd)
        };
        let fd = connected().map_err(|errno: nix::errno::Errno| Error::file(&path, "connecting", errno))?;
        Ok(Connection { stream: fd.into(), received: Vec::new() })
    }

    /// Sends a request and returns what is in its reply's field `ok`.
    ///
    /// # Errors
    /// [`Error::Other`] if the reply is an error or not of this protocol; [`Error::Io`] if there is none in time.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let line = self.exchange(&request.encode()).map_err(|e| Error::io("asking dom0", e))?;
        let ok = parse_reply(&line).map_err(Error::Other)?;
        serde_json::from_value(ok).map_err(|e| Error::Other(format!("the reply: {e}")))
    }

    /// The stream, for a command that goes on behind its reply, and what has come of that already.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn into_stream(self) -> io::Result<(UnixStream, Vec<u8>)> {
        self.stream.set_read_timeout(None)?;
        Ok((self.stream, self.received))
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(request)?;
        let until = Instant::now() + TIMEOUT;
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                return Ok(self.received.drain(..=end).collect());
            }
            if self.received.len() > MAX_REPLY {
                return Err(io::Error::new(ErrorKind::InvalidData, "the reply is too long"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
