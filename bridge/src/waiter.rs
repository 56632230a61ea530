//! Where the worker sleeps: an epoll instance with every port's descriptor and the control's.

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

/// Who can be woken by what.
pub(crate) struct Waiter {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Waiter {
    /// Waits for `control`'s readiness, for the time being alone.
    pub(crate) fn new(control: impl AsFd) -> io::Result<Waiter> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))?;
        Ok(Waiter { epoll, events: vec![EpollEvent::empty(); 64] })
    }

    /// Waits for a port's descriptor too.
    pub(crate) fn add(&self, port: PortId, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, port.0.into()))?)
    }

    /// No longer waits for a port's descriptor. That it is gone already is as good.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits at most `time`, zero to only look, and appends to `ready` the ports whose descriptors are
    /// readable (up to 64; the kernel takes turns). `true` if control's is. An interrupted wait finds none.
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
