//! `/dev/xen/xenbus`: the kernel's connection to xenstored, which speaks `xs_wire`.

use super::node::Node;
use crate::error::{Error, Result};
use event_loop::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::DomId;
use ring_abi::xs_wire::{HEADER_SIZE, Header, MessageType};
use std::io::ErrorKind;
use std::os::fd::AsFd;

/// The longest that xenstored may take to reply, in milliseconds.
const TIMEOUT_MS: u16 = 10_000;

/// Opens a connection. It is nonblocking, and independent of other connections.
pub(super) fn connect() -> Result<Box<dyn Stream>> {
    Ok(Box::new(Node::open("xenbus")?.file))
}

/// Reads this domain's number: the relative path `domid`, which the toolstack wrote.
pub(super) fn own_domid() -> Result<DomId> {
    let mut stream = connect()?;
    let path = b"domid\0";
    let header = Header { kind: MessageType::Read as u32, req_id: 1, tx_id: 0, len: path.len() as u32 };
    let request = [&header.to_bytes()[..], path].concat();
    stream.write_all(&request).map_err(|e| Error::io("request this domain's number from the store", e))?;

    let mut bytes = [0; HEADER_SIZE];
    read_all(&mut *stream, &mut bytes)?;
    let header = Header::from_bytes(&bytes);
    let mut payload = vec![0; header.len.min(64) as usize];
    read_all(&mut *stream, &mut payload)?;
    let value = String::from_utf8_lossy(&payload);
    match value.trim_end_matches('\0').parse() {
        Ok(domid) if header.kind == MessageType::Read as u32 => Ok(DomId(domid)),
        _ => Err(Error::Protocol(format!("the store has {value:?} as this domain's number"))),
    }
}

/// Fills `into`, with a timeout for each read.
fn read_all(stream: &mut dyn Stream, mut into: &mut [u8]) -> Result<()> {
    let timed_out = || Error::io("read the store's reply", std::io::Error::from(ErrorKind::TimedOut));
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(Error::Closed),
            Ok(n) => into = &mut into[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(TIMEOUT_MS)) == Ok(0) {
                    return Err(timed_out());
                }
            }
            Err(e) => return Err(Error::io("read the store's reply", e)),
        }
    }
    Ok(())
}
