//! Requests by TCP, each after the last one's answer: over one connection, and over a connection each.

use super::echo::{BYTES, failed};
use crate::namespace::{ADDRESSES, Ends};
use nix::sys::socket::{Shutdown, shutdown};
use std::fs;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Requests at the start of a measurement that are not counted.
const WARM_UP: usize = 100;
/// A request that asks for nothing but the server's end.
const LAST: [u8; BYTES] = [0xff; BYTES];
/// Longest wait for an answer.
const BOUND: Duration = Duration::from_secs(10);

/// Requests a second over one connection.
///
/// # Errors
/// Of the sockets.
pub(super) fn requests(ends: &Ends, time: Duration) -> std::result::Result<f64, String> {
    with_server(ends, answer_one_connection, |address| request(address, time))
        .map_err(failed("a TCP request"))
}

/// Connections a second, one after the other, with a request each. The server closes each after its answer, as of HTTP/1.0.
///
/// # Errors
/// Of the sockets.
pub(super) fn connections(ends: &Ends, time: Duration) -> std::result::Result<f64, String> {
    let client = |address| {
        // Enough ports for all connections of a measurement.
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        connect(address, time)
    };
    with_server(ends, answer_connections, client).map_err(failed("a TCP connection"))
}

/// Runs `serve` on a thread at the server's end, and `client` at the other end.
fn with_server(
    ends: &Ends,
    serve: fn(&TcpListener) -> Result<()>,
    client: impl FnOnce(SocketAddr) -> Result<f64> + Send,
) -> Result<f64> {
    let listener = ends.server.run(|| TcpListener::bind((ADDRESSES[1], 0)))?;
    serve_one(&listener, serve, |address| ends.client.run(|| client(address)))
}

fn serve_one(
    listener: &TcpListener,
    serve: fn(&TcpListener) -> Result<()>,
    client: impl FnOnce(SocketAddr) -> Result<f64>,
) -> Result<f64> {
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(listener));
        let rate = client(address);
        if rate.is_err() {
            // The server may wait for a connection that does not come.
            shutdown(listener.as_raw_fd(), Shutdown::Both)?;
        }
        let served = server.join().expect("no panic");
        let rate = rate?;
        served?;
        Ok(rate)
    })
}

/// Answers one connection's requests until it ends.
fn answer_one_connection(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; BYTES];
    loop {
        match stream.read_exact(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        stream.write_all(&bytes)?;
    }
}

fn request(address: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(BOUND))?;
    let mut bytes = [0; BYTES];
    let mut once = || {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)
    };
    for _ in 0..WARM_UP {
        once()?;
    }
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time {
        once()?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Answers one request of each connection, up to the one that is [`LAST`].
fn answer_connections(listener: &TcpListener) -> Result<()> {
    let mut bytes = [0; BYTES];
    while bytes != LAST {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
    Ok(())
}

fn connect(address: SocketAddr, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < time {
        request_and_close(address, &[0; BYTES])?;
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    request_and_close(address, &LAST)?;
    Ok(rate)
}

/// Connects, asks, and reads until the server closes.
fn request_and_close(address: SocketAddr, request: &[u8; BYTES]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(request)?;
    let mut answer = Vec::with_capacity(BYTES);
    stream.read_to_end(&mut answer)?;
    if answer == request { Ok(()) } else { Err(std::io::Error::other("another answer than was asked for")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_loopback(
        serve: fn(&TcpListener) -> Result<()>,
        client: fn(SocketAddr) -> Result<f64>,
    ) -> Result<f64> {
        serve_one(&TcpListener::bind("127.0.0.1:0").unwrap(), serve, client)
    }

    #[test]
    fn requests_are_answered_over_one_connection() {
        let rate = on_loopback(answer_one_connection, |address| request(address, Duration::from_millis(5)));
        assert!(rate.unwrap() > 0.0);
    }

    #[test]
    fn connections_are_answered_and_the_last_one_ends_the_server() {
        let rate = on_loopback(answer_connections, |address| connect(address, Duration::from_millis(5)));
        assert!(rate.unwrap() > 0.0);
    }

    #[test]
    fn client_that_fails_ends_the_server() {
        let failed = on_loopback(answer_connections, |_| Err(std::io::Error::other("no route")));
        assert_eq!(failed.unwrap_err().to_string(), "no route");
    }
}
