//! A disk over a hypervisor, owned by one thread: nothing is locked on its way.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_channel::AdaptivePoll;
use hypervisor::{Channel, DomId, Hypervisor, Shared};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use ring_abi::blkif::{Status, X86_64};
use xenstore::Client;
use xenstore::xenbus::DeviceEnd;

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::handshake::{Handshake, Info};
use crate::queue::{Op, Queue, Segments};

/// How a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The ring's pages as a power of two, if the backend takes as many: 0 has 32 requests in flight, 4 has 512.
    pub ring_page_order: u32,
    /// How long [`Disk::open`] waits for the backend.
    pub patience: Duration,
    /// How long [`Disk::wait`] polls before it sleeps.
    pub spin: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { ring_page_order: 0, patience: Duration::from_secs(30), spin: Duration::from_micros(20) }
    }
}

/// One request, with the pages it moves.
#[derive(Debug)]
pub struct Request {
    /// The caller's own mark, given back in the [`Completion`].
    pub token: u64,
    /// What to do.
    pub op: Op,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// Bytes from the buffer's start, whole sectors of the disk; 0 for a flush.
    pub bytes: usize,
    /// The pages; none for a flush.
    pub buffer: Option<Buffer>,
}

impl Request {
    /// A flush.
    pub fn flush(token: u64) -> Request {
        Request { token, op: Op::Flush, sector: 0, bytes: 0, buffer: None }
    }
}

/// A request that is over.
#[derive(Debug)]
pub struct Completion {
    /// The request, its buffer with it.
    pub request: Request,
    /// How it went.
    pub status: Status,
}

impl Completion {
    /// The request's outcome as an error.
    ///
    /// # Errors
    /// [`Error::Status`].
    pub fn check(&self) -> Result<()> {
        let Request { op, sector, .. } = self.request;
        match self.status {
            Status::OKAY => Ok(()),
            status => Err(Error::Status { op, sector, status }),
        }
    }
}

/// The ring's other parts; the ring itself is in the queue.
pub(crate) struct Link {
    pub(crate) channel: Box<dyn Channel>,
}

/// What epoll says became ready.
pub(crate) const STORE: u64 = 0;
pub(crate) const CHANNEL: u64 = 1;

/// How many fruitless polls until the store is listened to: a caller that only ever polls hears of a new size or a
/// new backend too.
const IDLE_POLLS: u32 = 4096;

/// Looks at the ring between two looks at the clock while spinning.
const SPINS: u32 = 64;

/// A virtual block device, open.
pub struct Disk {
    pub(crate) hv: Arc<dyn Hypervisor>,
    pub(crate) store: Client,
    pub(crate) end: DeviceEnd,
    pub(crate) peer: DomId,
    pub(crate) options: Options,
    pub(crate) handshake: Handshake,
    pub(crate) info: Option<Info>,
    pub(crate) queue: Queue<X86_64, Shared, Request>,
    pub(crate) link: Option<Link>,
    pub(crate) epoll: Epoll,
    pub(crate) idle: u32,
    spin: AdaptivePoll,
    /// The backend closes, and what is in flight is waited for.
    pub(crate) leaving: bool,
    /// Buffers of the copying calls, kept.
    pub(crate) spare: Vec<Buffer>,
}

impl Disk {
    /// Opens the device `devid` of this domain and waits until the backend is connected.
    ///
    /// # Errors
    /// [`Error::NotConnected`] names the backend's state; otherwise whatever went wrong first.
    pub fn open(hv: Arc<dyn Hypervisor>, store: Client, devid: u32) -> Result<Disk> {
        Disk::open_with(hv, store, devid, Options::default())
    }

    /// As [`Disk::open`], with options.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_with(
        hv: Arc<dyn Hypervisor>,
        mut store: Client,
        devid: u32,
        options: Options,
    ) -> Result<Disk> {
        let path = format!("/local/domain/{}/device/vbd/{devid}", hv.domid());
        let end = DeviceEnd::find_front(&mut store, &path)?;
        let peer = end.other_id();
        let handshake = Handshake::new(end.state(&mut store)?);
        end.watch_other(&mut store, "back")?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(store.fd(), EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, STORE))?;
        let mut disk = Disk {
            hv,
            store,
            end,
            peer,
            options,
            handshake,
            info: None,
            queue: Queue::new(0),
            link: None,
            epoll,
            idle: 0,
            spin: AdaptivePoll::default(),
            leaving: false,
            spare: Vec::new(),
        };
        disk.connect()?;
        Ok(disk)
    }

    fn connect(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.options.patience;
        self.look()?;
        while !self.handshake.is_connected() {
            if self.handshake.is_closed() || Instant::now() >= deadline {
                let state = self.end.other_state(&mut self.store)?;
                let path = self.end.other_path().to_owned();
                return Err(Error::NotConnected { path, state, after: self.options.patience });
            }
            self.sleep(Some(deadline))?;
        }
        Ok(())
    }

    /// What the disk is now, as the backend said it last.
    pub fn info(&self) -> Info {
        self.info.unwrap_or(Info {
            sectors: 0,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: true,
            flush: false,
            barrier: false,
        })
    }

    /// Requests that can be in flight at once.
    pub fn depth(&self) -> usize {
        self.queue.size() as usize
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Pages for requests: so many bytes, at most 44 KiB.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(&*self.hv, self.peer, bytes)
    }

    /// Asks for something; it reaches the backend with the next [`Disk::commit`] or [`Disk::wait`]. While the backend
    /// is away requests are kept, and asked when it is back.
    ///
    /// # Errors
    /// Gives the request back when too many are in flight, when the device is closed ([`Disk::is_closed`] tells), or
    /// when its bytes are no whole sectors inside its buffer.
    #[inline]
    #[allow(clippy::result_large_err)] // The request, by value: an error is not the point here.
    pub fn submit(&mut self, request: Request) -> std::result::Result<(), Request> {
        let segments = match &request.buffer {
            None => Some(Segments::new()),
            Some(buffer) => buffer.segments(request.bytes),
        };
        match segments {
            Some(segments) if !self.handshake.is_closed() => {
                self.queue.submit(request.op, request.sector, segments, request)
            }
            _ => Err(request),
        }
    }

    /// Publishes what was submitted, and wakes the backend if it sleeps.
    ///
    /// # Errors
    /// The hypervisor's.
    #[inline]
    pub fn commit(&mut self) -> Result<()> {
        if !self.handshake.is_connected() && !self.leaving || !self.queue.commit().wanted() {
            return Ok(());
        }
        match self.link.as_ref().map(|link| link.channel.notify()) {
            // A backend that is gone is waited for.
            None | Some(Ok(()) | Err(hypervisor::Error::Closed)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Adds what is done to `done`, without waiting; says how much that was.
    ///
    /// # Errors
    /// [`Error::Fault`]: the backend broke the protocol, and the device is closed.
    #[inline]
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> Result<usize> {
        let before = done.len();
        loop {
            match self.queue.poll() {
                Ok(Some((request, status))) => done.push(Completion { request, status }),
                Ok(None) => break,
                Err(fault) => return Err(self.fault(fault)),
            }
        }
        if done.len() > before {
            self.idle = 0;
        } else {
            self.idle += 1;
            if self.idle >= IDLE_POLLS {
                self.idle = 0;
                self.process_events()?;
            }
        }
        Ok(done.len() - before)
    }

    /// Publishes what was submitted and waits until something is done, something else happened, or the time is
    /// over; what is done is added to `done`. Says how much that was.
    ///
    /// # Errors
    /// As [`Disk::poll`]; [`Error::Closed`] when nothing will ever be done.
    pub fn wait(&mut self, done: &mut Vec<Completion>, timeout: Option<Duration>) -> Result<usize> {
        self.commit()?;
        let count = self.look_for_a_while(done)?;
        if count > 0 {
            return Ok(count);
        }
        let start = Instant::now();
        self.finish_leaving()?;
        if self.handshake.is_closed() && !self.leaving {
            return Err(Error::Closed);
        }
        match self.queue.arm() {
            Ok(true) => {}
            Ok(false) => self.sleep(timeout.map(|t| start + t))?,
            Err(fault) => return Err(self.fault(fault)),
        }
        self.poll(done)
    }

    /// Polls, for as long as that is likely to pay.
    fn look_for_a_while(&mut self, done: &mut Vec<Completion>) -> Result<usize> {
        let count = self.poll(done)?;
        if count > 0 || self.options.spin.is_zero() || !self.spin.worth() {
            return Ok(count);
        }
        let start = Instant::now();
        while start.elapsed() < self.options.spin {
            for _ in 0..SPINS {
                let count = self.poll(done)?;
                if count > 0 {
                    self.spin.hit();
                    return Ok(count);
                }
                std::hint::spin_loop();
            }
        }
        self.spin.missed();
        Ok(0)
    }

    /// Readable when [`Disk::wait`] would find something to do, provided that [`Disk::arm`] was called before and
    /// said `false`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Asks for [`Disk::fd`] to become readable with the next completion; `true` if there is one already.
    ///
    /// # Errors
    /// As [`Disk::poll`].
    pub fn arm(&mut self) -> Result<bool> {
        self.queue.arm().map_err(|fault| self.fault(fault))
    }

    /// Takes note of what made [`Disk::fd`] readable; to be followed by [`Disk::poll`].
    ///
    /// # Errors
    /// As [`Disk::wait`].
    pub fn process_events(&mut self) -> Result<()> {
        self.sleep(Some(Instant::now()))
    }

    /// Whether the device is closed for good.
    pub fn is_closed(&self) -> bool {
        self.handshake.is_closed()
    }

    /// Waits for what is in flight, then closes the device and waits for the backend to let go of it.
    ///
    /// # Errors
    /// The store's. Requests that are in flight when the backend is gone are given up.
    pub fn close(mut self) -> Result<()> {
        let mut done = Vec::new();
        while self.in_flight() > 0 && self.handshake.is_connected() {
            self.wait(&mut done, None)?;
            done.clear();
        }
        self.leave()
    }

    /// Sleeps until an event or the deadline, and takes note of it.
    pub(crate) fn sleep(&mut self, deadline: Option<Instant>) -> Result<()> {
        let mut events = [EpollEvent::empty(); 2];
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            }
        };
        let ready = match self.epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            match event.data() {
                CHANNEL => self.hear()?,
                _ => self.look()?,
            }
        }
        Ok(())
    }

    /// Takes a pending event.
    fn hear(&mut self) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        match link.channel.take() {
            Ok(_) => Ok(()),
            // The backend's domain died. Its successor is heard of through the store.
            Err(hypervisor::Error::Closed) => Ok(self.epoll.delete(link.channel.as_fd())?),
            Err(error) => Err(error.into()),
        }
    }
}
