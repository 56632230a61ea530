//! `/dev/xen/xenbus`: the kernel's connection to xenstored, which speaks `xs_wire`.

use super::node::Node;
use crate::error::{Error, Result};
use crate::{DomId, Stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_abi::xs_wire::{HEADER_SIZE, Header, MessageType};
use std::io::ErrorKind;
use std::os::fd::AsFd;

/// How long xenstored may take to say who we are, in milliseconds.
const PATIENCE_MS: u16 = 10_000;

/// A connection of its own: replies and watch events come in whole, in order; it never blocks.
pub(super) fn connect() -> Result<Box<dyn Stream>> {
    Ok(Box::new(Node::open("xenbus")?.file))
}

/// Our own number: a domain may read `domid` below its home, where the toolstack wrote it.
pub(super) fn own_domid() -> Result<DomId> {
    let mut stream = connect()?;
    let path = b"domid\0";
    let header = Header { kind: MessageType::Read as u32, req_id: 1, tx_id: 0, len: path.len() as u32 };
    let asked = [&header.to_bytes()[..], path].concat();
    stream.write_all(&asked).map_err(|e| Error::io("asking the store for our domain id", e))?;

    let mut bytes = [0; HEADER_SIZE];
    read_all(&mut *stream, &mut bytes)?;
    let header = Header::from_bytes(&bytes);
    let mut payload = vec![0; header.len.min(64) as usize];
    read_all(&mut *stream, &mut payload)?;
    let said = String::from_utf8_lossy(&payload);
    match said.trim_end_matches('\0').parse() {
        Ok(domid) if header.kind == MessageType::Read as u32 => Ok(DomId(domid)),
        _ => Err(Error::Protocol(format!("the store says that our domain id is {said:?}"))),
    }
}

/// Fills `into`, waiting for each part with a bound.
fn read_all(stream: &mut dyn Stream, mut into: &mut [u8]) -> Result<()> {
    let late = || Error::io("the store's answer", std::io::Error::from(ErrorKind::TimedOut));
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(Error::Closed),
            Ok(n) => into = &mut into[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(PATIENCE_MS)) == Ok(0) {
                    return Err(late());
                }
            }
            Err(e) => return Err(Error::io("the store's answer", e)),
        }
    }
    Ok(())
}
