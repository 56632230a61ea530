//! Datagrams one way, at a rate or as fast as one thread can send.

use super::echo::failed;
use crate::namespace::{ADDRESSES, Ends};
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Result};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Of the receiver's socket: that the receiver is late loses nothing.
const RECEIVE_BUFFER: usize = 32 << 20;
/// A sender at a rate sleeps this long between bursts.
const INTERVAL: Duration = Duration::from_micros(100);
/// What has not arrived this long after the last datagram was sent is lost.
const LATEST: Duration = Duration::from_millis(100);

/// What was sent, and what of it arrived.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Outcome {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Of the sending.
    pub(super) time: Duration,
}

impl Outcome {
    pub(super) fn sent_a_second(self) -> f64 {
        self.sent as f64 / self.time.as_secs_f64()
    }

    pub(super) fn received_a_second(self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }

    pub(super) fn is_lossless(self) -> bool {
        self.received >= self.sent
    }
}

/// Sends datagrams of `bytes` bytes for a time, at most `rate` a second.
///
/// # Errors
/// Of the sockets.
pub(super) fn run(
    ends: &Ends,
    bytes: usize,
    rate: Option<f64>,
    time: Duration,
) -> std::result::Result<Outcome, String> {
    let receiver = ends.server.run(|| receiver(ADDRESSES[1])).map_err(failed("the receiver's socket"))?;
    let address = receiver.local_addr().map_err(failed("the receiver's address"))?;
    let sender = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((ADDRESSES[0], 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let sender = ends.client.run(sender).map_err(failed("the sender's socket"))?;
    transfer(&sender, &receiver, bytes, rate, time).map_err(failed("datagrams one way"))
}

fn receiver(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(LATEST))?;
    // Root may have more than `net.core.rmem_max`.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(socket)
}

fn transfer(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    bytes: usize,
    rate: Option<f64>,
    time: Duration,
) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| count(receiver, &stop));
        let start = Instant::now();
        let sent = match rate {
            Some(rate) => send_paced(sender, &vec![0; bytes], rate, time),
            None => send_all(sender, &vec![0; bytes], time),
        };
        let time = start.elapsed();
        stop.store(true, Relaxed);
        let received = counter.join().expect("no panic")?;
        Ok(Outcome { sent: sent?, received, time })
    })
}

/// Counts datagrams until `stop` is set and none has arrived for [`LATEST`].
fn count(receiver: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let mut bytes = [0; 2_048];
    let mut received = 0;
    loop {
        match receiver.recv(&mut bytes) {
            Ok(_) => received += 1,
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(e),
            Err(_) if stop.load(Relaxed) => return Ok(received),
            Err(_) => {}
        }
    }
}

fn send_all(sender: &UdpSocket, datagram: &[u8], time: Duration) -> Result<u64> {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        sender.send(datagram)?;
        sent += 1;
    }
    Ok(sent)
}

/// Sends in bursts, between which it sleeps: one that spins would take a core from what it measures.
fn send_paced(sender: &UdpSocket, datagram: &[u8], rate: f64, time: Duration) -> Result<u64> {
    // Else the kernel ends a sleep up to 50 us late. It is set for this thread, which is the measurement's.
    set_timerslack(1)?;
    let start = Instant::now();
    let mut sent = 0;
    let mut next = INTERVAL;
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            sender.send(datagram)?;
            sent += 1;
        }
        std::thread::sleep(next.saturating_sub(start.elapsed()));
        next = start.elapsed().max(next) + INTERVAL;
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_over_loopback_counts_what_was_sent() {
        let receiver = receiver("127.0.0.1").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let outcome = transfer(&sender, &receiver, 64, Some(10_000.0), Duration::from_millis(50)).unwrap();
        assert!(outcome.is_lossless() && outcome.sent > 0 && outcome.sent <= 600, "{outcome:?}");
    }

    #[test]
    fn outcome_with_a_missing_datagram_is_not_lossless() {
        let outcome = Outcome { sent: 1_000, received: 999, time: Duration::from_millis(500) };
        assert!(!outcome.is_lossless());
        assert_eq!((outcome.sent_a_second(), outcome.received_a_second()), (2_000.0, 1_998.0));
    }
}
