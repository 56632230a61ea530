// Not a core: does I/O or calls a hypervisor.

//! Opening a disk: until its backend is connected, or the caller gives it up.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use event_channel::WaitEventChannels;
use event_loop::{AdaptivePoll, Connector, EventSet};
use grant_table::GrantTable;
use xenbus::{DeviceEnd, StoreLink};

use crate::device::{Disk, Options, STOP, STORE};
use crate::error::{Error, Result};
use crate::handshake::Handshake;
use crate::queue::Queue;

impl Disk {
    /// Opens the device `devid` of this domain and waits until the backend is connected.
    ///
    /// # Errors
    /// [`Error::NotConnected`] if the backend closes or does not connect in time; [`Error::Key`] if it publishes an
    /// invalid key; otherwise a failed operation on store, grants, event channels or system.
    pub fn open(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
    ) -> Result<Disk> {
        Disk::open_with(grants, channels, store, devid, Options::default())
    }

    /// Opens a device like [`Disk::open`], with options.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_with(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
        options: Options,
    ) -> Result<Disk> {
        let mut disk = Disk::start(grants, channels, store, devid, options)?;
        disk.connect(None)?;
        Ok(disk)
    }

    /// Opens a device like [`Disk::open_with`], unless `stop` becomes readable before it is connected: the device is then
    /// closed, and the result is `None`.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_until(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
        options: Options,
        stop: BorrowedFd<'_>,
    ) -> Result<Option<Disk>> {
        let mut disk = Disk::start(grants, channels, store, devid, options)?;
        disk.event_set.add(stop, STOP)?;
        let connected = disk.connect(Some(STOP));
        disk.event_set.remove(stop);
        match connected? {
            true => Ok(Some(disk)),
            false => disk.close().map(|()| None),
        }
    }

    /// Makes a disk that is not connected yet.
    fn start(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        store: Arc<dyn Connector>,
        devid: u32,
        options: Options,
    ) -> Result<Disk> {
        let domid = grants.domid();
        let span = tracing::error_span!("vbd", %domid, devid);
        let path = format!("/local/domain/{domid}/device/vbd/{devid}");
        let event_set = EventSet::new()?;
        let mut link = StoreLink::connect(store, &event_set, STORE)?;
        let client = link.client().ok_or(xenstore::Error::Closed)?;
        let end = DeviceEnd::find_front(client, &path)?;
        let peer = end.other_id();
        let written = end.state(client)?;
        Ok(Disk {
            span,
            grants,
            channels,
            link,
            end,
            peer,
            options,
            handshake: Handshake::new(written),
            written,
            negotiated: None,
            queue: Queue::new(0),
            notifier: None,
            event_set,
            stats: Arc::default(),
            empty_polls: 0,
            adaptive_poll: AdaptivePoll::default(),
            closing: false,
            in_use: false,
            spare: Vec::new(),
        })
    }

    /// Waits until the backend is connected; `false` if the descriptor of token `stop` is ready before.
    fn connect(&mut self, stop: Option<u64>) -> Result<bool> {
        let start = Instant::now();
        let deadline = start + self.options.timeout;
        self.attach()?;
        self.follow_store()?;
        while !self.handshake.is_connected() {
            if self.handshake.is_closed() || Instant::now() >= deadline {
                let client = self.link.client().ok_or(xenstore::Error::Closed)?;
                let state = self.end.other_state(client)?;
                let path = self.end.other_path().to_owned();
                return Err(Error::NotConnected { path, state, after: start.elapsed() });
            }
            let ready = self.sleep(Some(deadline))?;
            if stop.is_some_and(|stop| ready.contains(stop)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
