//! `/dev/xen/evtchn`: event channels. Each has a descriptor of its own, so that each can be polled alone.
#![allow(unsafe_code)] // Structures for ioctls.

use super::abi;
use super::node::Node;
use crate::error::{Error, Result};
use crate::mask::Mask;
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
    mask: Mask,
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
        Ok(Self { node, port: EventPort(port), mask: Mask::default() })
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
        Ok(Self { node, port: EventPort(port), mask: Mask::default() })
    }

    /// Writes the port's number back, which unmasks it in the kernel: an event that Xen has pending arrives.
    fn write_back(&self) -> Result<()> {
        let failed = |e| Error::io(format!("unmask event channel {}", self.port), e);
        (&self.node.file).write_all(&self.port.0.to_ne_bytes()).map_err(failed)
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

    /// Reads the pending port, which stays masked in the kernel until its number is written back.
    fn take(&self) -> event_channel::Result<bool> {
        match (&self.node.file).read(&mut [0; 4]) {
            Ok(0) => Ok(false),
            Ok(_) if self.mask.remember() => Ok(false),
            Ok(_) => {
                self.write_back()?;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(Error::io(format!("read event channel {}", self.port), e).into()),
        }
    }

    /// The kernel delivers one event more, whose port [`Channel::take`] does not write back.
    fn mask(&self) {
        self.mask.set();
    }

    fn unmask(&self) -> event_channel::Result<bool> {
        let remembered = self.mask.clear();
        if remembered {
            self.write_back()?;
        }
        Ok(remembered)
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.file.as_fd()
    }
}
