//! A capture for one client, which takes the connection over: the reply, then pcapng until it closes its side.

use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bridge::{Capture, CaptureOptions, CapturedFrames};
use netback::Ports;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::pcapng::{Interface, Writer};

/// Captures of one process at a time.
const MOST: usize = 16;

/// How long frames are waited for before the client is looked at.
const TICK: Duration = Duration::from_millis(200);

/// What a client wants captured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The vif's domain.
    pub domid: u16,
    /// Its number.
    pub devid: u32,
    /// Which frames, and how much of each.
    pub options: CaptureOptions,
    /// Ends the capture after so many.
    pub count: Option<u64>,
}

/// The captures of one process.
#[derive(Clone, Default)]
pub struct Captures {
    ports: Ports,
    /// Each session has a clone.
    running: Arc<()>,
}

impl Captures {
    /// Captures of the vifs that these ports are of.
    pub fn new(ports: Ports) -> Captures {
        Captures { ports, running: Arc::default() }
    }

    /// Begins to capture; the frames wait for [`Session::run`].
    ///
    /// # Errors
    /// There is no such vif, it is not connected, or there are as many captures as there may be.
    pub fn begin(&self, wanted: Wanted) -> Result<Session, String> {
        let Wanted { domid, devid, options, count } = wanted;
        let found = self.ports.find(ring_abi::DomId(domid), devid);
        let port = found
            .ok_or_else(|| format!("vif {domid}/{devid} is not connected to a bridge of this process"))?;
        let running = self.running.clone();
        if Arc::strong_count(&running) - 1 > MOST {
            return Err(format!("there are {MOST} captures, which is the most at a time"));
        }
        let snaplen = options.snaplen;
        let capture = port.bridge.capture(&port.name, options).map_err(|error| error.to_string())?;
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let description = format!("vif {devid} of domain {domid}");
        let interface = Interface { name: port.name, description, snaplen, began };
        Ok(Session { capture, interface, most: count.unwrap_or(u64::MAX), _running: running })
    }
}

/// A capture that has begun.
pub struct Session {
    capture: Capture,
    interface: Interface,
    most: u64,
    _running: Arc<()>,
}

impl Session {
    /// The name of the port.
    pub fn port(&self) -> &str {
        &self.interface.name
    }

    /// Writes `reply` and then the frames, until the client closes its side of the connection, the port goes, or there are as many
    /// as are wanted. Waits for a client that does not read.
    ///
    /// # Errors
    /// The client is gone.
    pub fn run(self, stream: UnixStream, reply: &[u8]) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        (&stream).write_all(reply)?;
        let mut writer = Writer::new(BufWriter::with_capacity(64 << 10, &stream), self.interface)?;
        let mut captured = CapturedFrames::default();
        writer.flush()?;
        while self.capture.take(&mut captured, TICK) {
            let is_done = writer.write(&captured, self.most)?;
            writer.flush()?;
            if is_done {
                break;
            }
            if has_closed(&stream)? {
                // What was captured until now.
                self.capture.take(&mut captured, Duration::ZERO);
                writer.write(&captured, self.most)?;
                break;
            }
        }
        writer.finish(self.capture.lost())
    }
}

/// Whether the client has closed its side; what it sends is ignored.
fn has_closed(mut stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? == 0 {
        return Ok(false);
    }
    Ok(stream.read(&mut [0; 512])? == 0)
}
