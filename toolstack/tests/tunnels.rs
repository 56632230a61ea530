//! VXLAN between two guests. The checksum that a sender's kernel leaves partial is then that of an inner header, which a vif's
//! ring cannot name: it is completed before the frame enters the ring, or the receiver drops it.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use common::netns::{Namespace, two_guests};
use common::program::run;
use common::{BOUND, Machine};
use testkit::random::bytes;

const BYTES: usize = 1 << 20;
const PORT: u16 = 7777;
/// The guests' addresses, and those of the tunnel's ends.
const GUESTS: [[&str; 2]; 2] = [["10.77.0.1", "10.77.0.2"], ["fd77::1", "fd77::2"]];
const INNER: [[&str; 2]; 2] = [["10.78.0.1", "10.78.0.2"], ["fd78::1", "fd78::2"]];

#[test]
fn tcp_and_udp_pass_through_vxlan_of_both_families() {
    let machine = Machine::new();
    let guests = two_guests(&machine);
    for (guest, address) in guests.iter().zip(GUESTS[1]) {
        ip(guest, &format!("address add {address}/64 dev eth0 nodad"));
    }
    for outer in GUESTS {
        for n in [0, 1] {
            let (local, remote) = (outer[n], outer[1 - n]);
            ip(
                &guests[n],
                &format!("link add vx type vxlan id 9 local {local} remote {remote} dstport 4789 dev eth0"),
            );
            ip(&guests[n], "link set vx up");
            ip(&guests[n], &format!("address add {}/24 dev vx", INNER[0][n]));
            ip(&guests[n], &format!("address add {}/64 dev vx nodad", INNER[1][n]));
        }
        for address in INNER.map(|inner| inner[1]) {
            let what = format!("to {address} through a tunnel to {}", outer[1]);
            assert!(tcp(&guests, address), "TCP {what}");
            for size in [1, 64, 1300] {
                assert_eq!(udp(&guests, address, size), Ok(()), "datagrams of {size} bytes {what}");
            }
        }
        guests.iter().for_each(|guest| ip(guest, "link delete vx"));
    }
    for guest in &guests {
        assert_eq!(guest.tcp("InCsumErrors"), 0);
    }
}

fn ip(guest: &Namespace, arguments: &str) {
    run(guest.program("ip", "iproute2").args(arguments.split(' ')));
}

/// Sends bytes from the first guest to the second; whether they arrived unchanged.
fn tcp(guests: &[Namespace; 2], address: &'static str) -> bool {
    let listener = guests[1].spawn(move || TcpListener::bind((address, PORT)).unwrap()).join().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).is_ok() && received == bytes(1, BYTES)
    });
    let sender = guests[0].spawn(move || {
        let mut stream = TcpStream::connect((address, PORT)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        stream.write_all(&bytes(1, BYTES)).unwrap();
    });
    sender.join().unwrap();
    receiver.join().unwrap()
}

/// Sends one datagram from the first guest to the second, which sends it back.
fn udp(guests: &[Namespace; 2], address: &'static str, size: usize) -> Result<(), String> {
    let socket = |guest: &Namespace, bound: String| {
        let socket = guest.spawn(move || UdpSocket::bind(bound).unwrap()).join().unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        socket
    };
    let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let server = socket(&guests[1], format!("{bracketed}:{PORT}"));
    let client = socket(&guests[0], if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" }.to_owned());
    let sent = bytes(2, size);
    client.send_to(&sent, (address, PORT)).map_err(|error| error.to_string())?;
    let mut into = [0; 2048];
    let (len, from) = server.recv_from(&mut into).map_err(|error| format!("the way there: {error}"))?;
    server.send_to(&into[..len], from).map_err(|error| error.to_string())?;
    let len = client.recv(&mut into).map_err(|error| format!("the way back: {error}"))?;
    if into[..len] == sent { Ok(()) } else { Err("other bytes came back".to_owned()) }
}
