//! Bursts of numbered UDP datagrams, for a network between two machines that lose none below its bounds.
//!
//! `udp_burst receive ADDRESS:PORT` receives bursts until it is killed, and answers each once all of it has arrived.
//! `udp_burst send ADDRESS:PORT LATE_MS` sends bursts of 10 to 600 datagrams of 64 to 1,400 bytes there, each at once, and
//! fails if any is not answered, or later than that after its last datagram.

use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Datagrams of each burst, and bytes of each datagram.
const BURSTS: [(u16, usize); 9] = [
    (10, 64),
    (10, 1400),
    (100, 64),
    (100, 1000),
    (300, 64),
    (300, 1000),
    (600, 64),
    (600, 1000),
    (600, 1400),
];
/// Bytes of a burst's number, a datagram's number, and the number of datagrams in the burst.
const HEADER: usize = 6;
/// Of the receiver's socket: a burst fits, whenever its program runs.
const BUFFER: usize = 8 << 20;
/// How long the sender waits for an answer before a datagram counts as lost.
const LOST: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["receive", address] => receive(address),
        ["send", address, late_ms] => send(address, Duration::from_millis(late_ms.parse()?)),
        _ => Err("expected: receive ADDRESS:PORT, or: send ADDRESS:PORT LATE_MS".into()),
    }
}

fn receive(address: &str) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    println!("ready");
    let mut bytes = [0; 2048];
    let mut burst = 0;
    let mut arrived = BTreeSet::new();
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        let Some([of, number, count]) = header(&bytes[..len]) else { continue };
        if of != burst {
            arrived.clear();
            burst = of;
        }
        arrived.insert(number);
        if arrived.len() == usize::from(count) {
            socket.send_to(&of.to_be_bytes(), from)?;
        }
    }
}

fn header(bytes: &[u8]) -> Option<[u16; 3]> {
    let header = bytes.get(..HEADER)?;
    Some([0, 2, 4].map(|at| u16::from_be_bytes([header[at], header[at + 1]])))
}

fn send(address: &str, late: Duration) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(LOST))?;
    for (burst, (count, size)) in (1u16..).zip(BURSTS) {
        let what = format!("{count} datagrams of {size} bytes");
        let took = send_burst(&socket, burst, count, size)
            .map_err(|error| format!("{what}: not all arrived: {error}"))?;
        println!("{what}: all have arrived {} ms after the last was sent", took.as_millis());
        if took > late {
            return Err(
                format!("{what}: {} ms, expected at most {}", took.as_millis(), late.as_millis()).into()
            );
        }
    }
    Ok(())
}

/// Sends a burst; returns how long after that the answer came.
fn send_burst(socket: &UdpSocket, burst: u16, count: u16, size: usize) -> io::Result<Duration> {
    let mut bytes = vec![0x5a; size];
    for number in 0..count {
        for (at, value) in [burst, number, count].into_iter().enumerate() {
            bytes[2 * at..2 * at + 2].copy_from_slice(&value.to_be_bytes());
        }
        socket.send(&bytes)?;
    }
    let sent = Instant::now();
    let mut answer = [0; 2];
    while u16::from_be_bytes(answer) != burst {
        socket.recv(&mut answer)?;
    }
    Ok(sent.elapsed())
}
