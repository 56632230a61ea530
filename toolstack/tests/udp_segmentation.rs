//! UDP that the kernel segments (`UDP_SEGMENT`) and may merge (`UDP_GRO`), as QUIC programs use it, from one guest to another over
//! IPv4 and IPv6: every datagram arrives whole and in order.

mod common;

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

use common::Machine;
use common::netns::{Namespace, two_guests};
use common::program::run;

const PORT: u16 = 7777;
/// Bytes of each datagram but the last of a buffer, which has a byte.
const SEGMENTS: [usize; 3] = [100, 1000, 1440];
/// Datagrams of a buffer that the sender gives to its kernel, which takes 64 at most, and 65,507 bytes.
const COUNT: usize = 40;
/// Buffers that are sent at once: their datagrams fit the receiver's socket, however it runs.
const BUFFERS: u8 = 2;

/// The bytes of a buffer.
fn buffer(number: u8, segment: usize) -> Vec<u8> {
    let len = (COUNT - 1) * segment + 1;
    (0..len).map(|at| (at / segment) as u8 ^ number.wrapping_mul(64) ^ (at % 251) as u8).collect()
}

/// Sends buffers that the kernel segments, and asserts that all of it arrives, in datagrams or merged ones.
fn check(from: &Namespace, to: &Namespace, address: &'static str, segment: usize) {
    let socket = to.spawn(move || UdpSocket::bind((address, PORT)).unwrap()).join().unwrap();
    socket.set_read_timeout(Some(common::BOUND)).unwrap();
    setsockopt(&socket, sockopt::UdpGroSegment, &true).unwrap();
    let sender = from.spawn(move || {
        let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        setsockopt(&socket, sockopt::UdpGsoSegment, &(segment as i32)).unwrap();
        for number in 0..BUFFERS {
            socket.send_to(&buffer(number, segment), (address, PORT)).unwrap();
        }
    });
    sender.join().unwrap();
    let expected: Vec<u8> = (0..BUFFERS).flat_map(|number| buffer(number, segment)).collect();
    let mut got = Vec::new();
    let mut merged = 0;
    while got.len() < expected.len() {
        let (bytes, size) = receive(&socket).unwrap_or_else(|error| {
            panic!("{address}, {segment} bytes: {} of {} bytes: {error}", got.len(), expected.len())
        });
        // A merged one's segments are as long as those that were sent.
        assert!(
            size.is_none_or(|size| size == segment) || bytes.len() == 1,
            "{address}: {size:?} of {}",
            bytes.len()
        );
        assert!(size.is_some() || bytes.len() == segment || bytes.len() == 1, "{address}: {}", bytes.len());
        merged += usize::from(bytes.len() > segment);
        got.extend(bytes);
    }
    assert!(got == expected, "{address}, {segment} bytes: out of order or changed");
    println!("{address}, {segment} bytes: {merged} merged");
}

/// A datagram, or several that the kernel has merged, and then the size of each.
fn receive(socket: &UdpSocket) -> nix::Result<(Vec<u8>, Option<usize>)> {
    let mut bytes = vec![0; 65_536];
    let mut control = nix::cmsg_space!(i32);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::empty())?;
    let size = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(size) => Some(size as usize),
        _ => None,
    });
    let len = message.bytes;
    bytes.truncate(len);
    Ok((bytes, size))
}

#[test]
fn segmented_udp_arrives_whole_over_both_families() {
    let machine = Machine::new();
    let guests = two_guests(&machine);
    let addresses = [["10.77.0.1", "fd00:77::1"], ["10.77.0.2", "fd00:77::2"]];
    for (guest, [_, v6]) in guests.iter().zip(addresses) {
        let net = format!("{v6}/64");
        run(guest.program("ip", "iproute2").args(["address", "add", &net, "dev", "eth0", "nodad"]));
    }
    for family in [0, 1] {
        run(guests[0].program("ping", "iputils-ping").args(["-c", "1", "-W", "20", addresses[1][family]]));
        for segment in SEGMENTS {
            check(&guests[0], &guests[1], addresses[1][family], segment);
            check(&guests[1], &guests[0], addresses[0][family], segment);
        }
    }
}
