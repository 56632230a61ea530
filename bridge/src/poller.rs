// Not a core: does I/O or calls a hypervisor.

//! The worker's epoll set: every port's descriptor and the control's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use crate::fdb::PortId;

const CONTROL: u64 = u64::MAX;

/// Waits for ports' descriptors and the control's.
pub(crate) struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// Makes a set that has only `control`'s descriptor.
    pub(crate) fn new(control: impl AsFd) -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))?;
        Ok(Poller { epoll, events: vec![EpollEvent::empty(); 64] })
    }

    /// Adds a port's descriptor.
    pub(crate) fn add(&self, port: PortId, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, port.0.into()))?)
    }

    /// Whether to wait for a port's descriptor, which stays in the set.
    pub(crate) fn wait_for(&self, port: PortId, fd: BorrowedFd<'_>, waits: bool) {
        let flags = if waits { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(flags, port.0.into()));
    }

    /// Removes a port's descriptor; one that is not in the set is no error.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits at most `time`, which may be zero, and appends the ports whose descriptors are readable to `ready` (up to
    /// 64 a call, of which the kernel changes the order). `true` if the control's is. An interrupted wait finds none.
    pub(crate) fn wait(&mut self, time: Duration, ready: &mut Vec<PortId>) -> io::Result<bool> {
        let millis = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::from(millis)) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let events = &self.events[..count];
        ready.extend(events.iter().filter_map(|event| u16::try_from(event.data()).ok().map(PortId)));
        Ok(events.iter().any(|event| event.data() == CONTROL))
    }
}
