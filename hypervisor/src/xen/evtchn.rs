//! `/dev/xen/evtchn`: event channels. Each has a descriptor of its own, so that each can be polled alone.
#![allow(unsafe_code)] // Structures for ioctls.

use super::abi;
use super::node::Node;
use crate::error::{Error, Result};
use event_channel::Channel;
use nix::errno::Errno;
use ring_abi::{DomId, EventPort};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// One end of an interdomain event channel; closing the descriptor unbinds it.
#[derive(Debug)]
pub(super) struct Evtchn {
    node: Node,
    port: EventPort,
}

impl Evtchn {
    /// Allocates a port to which `peer` may bind.
    pub(super) fn alloc_unbound(peer: DomId) -> Result<Self> {
        let node = Node::open("evtchn")?;
        let mut argument = abi::BindUnbound { remote_domain: peer.0.into() };
        // SAFETY: the structure that this ioctl takes.
        let port =
            unsafe { node.ioctl(abi::EVTCHN_BIND_UNBOUND, &raw mut argument) }.map_err(
                |error| match error {
                    Errno::ESRCH => Error::NoSuchDomain(peer),
                    Errno::ENOSPC => Error::NoSpace("event channels"),
                    other => Error::io(format!("allocate an event channel for domain {peer}"), other),
                },
            )?;
        Ok(Self { node, port: EventPort(port) })
    }

    /// Binds to `remote`, a port that `peer` allocated for this domain.
    pub(super) fn bind_interdomain(peer: DomId, remote: EventPort) -> Result<Self> {
        let node = Node::open("evtchn")?;
        let mut argument = abi::BindInterdomain { remote_domain: peer.0.into(), remote_port: remote.0 };
        // SAFETY: the structure that this ioctl takes.
        let port =
            unsafe { node.ioctl(abi::EVTCHN_BIND_INTERDOMAIN, &raw mut argument) }.map_err(|error| {
                match error {
                    Errno::EINVAL => Error::NoSuchPort { peer, port: remote },
                    Errno::ESRCH => Error::NoSuchDomain(peer),
                    Errno::ENOSPC => Error::NoSpace("event channels"),
                    other => Error::io(format!("bind to event channel {remote} of domain {peer}"), other),
                }
            })?;
        Ok(Self { node, port: EventPort(port) })
    }
}

impl Channel for Evtchn {
    fn port(&self) -> EventPort {
        self.port
    }

    /// Xen drops events to a closed end without an error.
    fn notify(&self) -> event_channel::Result<()> {
        let mut argument = abi::Notify { port: self.port.0 };
        // SAFETY: the structure that this ioctl takes.
        match unsafe { self.node.ioctl(abi::EVTCHN_NOTIFY, &raw mut argument) } {
            Ok(_) => Ok(()),
            Err(Errno::ENOTCONN) => Err(event_channel::Error::Closed),
            Err(error) => Err(Error::io(format!("notify event channel {}", self.port), error).into()),
        }
    }

    /// Reads the pending port, which stays masked until its number is written back.
    fn take(&self) -> event_channel::Result<bool> {
        let mut port = [0; 4];
        match (&self.node.file).read(&mut port) {
            Ok(0) => Ok(false),
            Ok(_) => {
                let unmask = |e| Error::io(format!("unmask event channel {}", self.port), e);
                (&self.node.file).write_all(&port).map_err(unmask)?;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(Error::io(format!("read event channel {}", self.port), e).into()),
        }
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.file.as_fd()
    }
}
