//! How long a datagram and its echo take.

use crate::namespace::{ADDRESSES, Ends};
use std::io::{ErrorKind, Result};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes of a request and of its answer.
pub(super) const BYTES: usize = 64;
/// Round trips at the start of a measurement that are not counted.
const WARM_UP: usize = 100;
/// An answer that is later than this is lost.
const LOST: Duration = Duration::from_secs(5);
/// Longest that two namespaces may take to reach each other.
const BOUND: Duration = Duration::from_secs(20);

/// In words, which socket failed.
pub(super) fn failed(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// A socket that sends datagrams back, on the thread that runs it.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Echo {
    /// On a free port of this address.
    ///
    /// # Errors
    /// Of bind(2).
    pub fn bind(address: &str) -> Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { address: socket.local_addr()?, socket })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is set and a datagram without bytes, or nothing, arrives.
    ///
    /// # Errors
    /// Of recv(2).
    pub fn run(&self, stop: &AtomicBool) -> Result<()> {
        let mut bytes = [0; 2_048];
        loop {
            match self.socket.recv_from(&mut bytes) {
                Ok((0, _)) => {}
                Ok((len, from)) => {
                    // A client that is gone has no use for an answer.
                    let _ = self.socket.send_to(&bytes[..len], from);
                    continue;
                }
                Err(e) if is_late(&e) => {}
                // A socket with a timeout does not wait on once a debugger has stopped its thread (signal(7)).
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if stop.load(Relaxed) {
                return Ok(());
            }
        }
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Sends datagrams to an [`Echo`], each after the last one's answer, as long as `more` says of the number so far; gives their
/// round trips' times.
///
/// # Errors
/// Of the socket; or an answer is lost.
pub fn round_trip_times(client: &UdpSocket, mut more: impl FnMut(usize) -> bool) -> Result<Vec<Duration>> {
    client.set_read_timeout(Some(LOST))?;
    let mut times = Vec::new();
    let mut bytes = [0u8; BYTES];
    while more(times.len()) {
        let number = (times.len() as u64).to_ne_bytes();
        bytes[..8].copy_from_slice(&number);
        let start = Instant::now();
        client.send(&bytes)?;
        client.recv(&mut bytes)?;
        times.push(start.elapsed());
        if bytes[..8] != number {
            return Err(std::io::Error::other("an answer to another datagram"));
        }
    }
    Ok(times)
}

/// Runs `client` with a socket that is connected to an echo at the other end.
fn with_echo<T>(ends: &Ends, client: impl FnOnce(&UdpSocket) -> Result<T>) -> std::result::Result<T, String> {
    let echo = ends.server.run(|| Echo::bind(ADDRESSES[1])).map_err(failed("the echo's socket"))?;
    let connect = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((ADDRESSES[0], 0))?;
        socket.connect(echo.address())?;
        Ok(socket)
    };
    let socket = ends.client.run(connect).map_err(failed("the client's socket"))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| echo.run(&stop));
        let figures = client(&socket);
        stop.store(true, Relaxed);
        let _ = socket.send(&[]);
        server.join().expect("no panic").map_err(failed("the echo"))?;
        figures.map_err(failed("a datagram's round trip"))
    })
}

/// Waits until the two reach each other.
///
/// # Errors
/// They do not.
pub(super) fn wait(ends: &Ends) -> std::result::Result<(), String> {
    with_echo(ends, |socket| {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let deadline = Instant::now() + BOUND;
        loop {
            // Unreachable at first, perhaps.
            let _ = socket.send(b"hello");
            match socket.recv(&mut [0; BYTES]) {
                Ok(_) => break,
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => {}
            }
        }
        // Answers to the other ones may still come.
        while socket.recv(&mut [0; BYTES]).is_ok() {}
        Ok(())
    })
}

/// Median and 99th percentile of datagrams' round trips, in microseconds.
///
/// # Errors
/// One is lost.
pub(super) fn round_trips(ends: &Ends, time: Duration) -> std::result::Result<[f64; 2], String> {
    let mut times = with_echo(ends, |socket| {
        round_trip_times(socket, |count| count < WARM_UP)?;
        let start = Instant::now();
        round_trip_times(socket, |_| start.elapsed() < time)
    })?;
    times.sort();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100].as_nanos() as f64 / 1e3;
    Ok([percentile(50), percentile(99)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_answers_every_datagram_and_stops() {
        let echo = Echo::bind("127.0.0.1").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(echo.address()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let server = scope.spawn(|| echo.run(&stop));
            let times = round_trip_times(&client, |count| count < 10).unwrap();
            assert_eq!(times.len(), 10);
            stop.store(true, Relaxed);
            client.send(&[]).unwrap();
            server.join().unwrap().unwrap();
        });
    }
}
