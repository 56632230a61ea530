// Not a core: does I/O or calls a hypervisor.

//! Opening a disk: until its backend is connected, or the caller gives it up.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use event_channel::{Notifiers, WaitEventChannels};
use event_loop::{AdaptivePoll, Connector};
use grant_table::GrantTable;
use xenbus::frontend::{self, Frontend};

use crate::device::{Disk, Options, STOP, STORE};
use crate::error::{Error, Result};
use crate::handshake::MANNER;
use crate::queues::Queues;
use crate::ring_pages::RingPages;

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
        disk.frontend.event_set().add(stop, STOP)?;
        let connected = disk.connect(Some(STOP));
        disk.frontend.event_set().remove(stop);
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
        let frontend = Frontend::open(store, STORE, ("vbd", domid, devid), MANNER, span)?;
        let peer = frontend.end().other_id();
        Ok(Disk {
            grants,
            channels,
            frontend,
            peer,
            options,
            negotiated: None,
            queues: Queues::new(),
            rings: RingPages::default(),
            notifiers: Notifiers::default(),
            stats: Arc::default(),
            empty_polls: 0,
            adaptive_poll: AdaptivePoll::default(),
            backend_lost: false,
            in_use: false,
            given_up: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Waits until the backend is connected; `false` if the descriptor of token `stop` is ready before.
    fn connect(&mut self, stop: Option<u64>) -> Result<bool> {
        let start = Instant::now();
        let deadline = start + self.options.timeout;
        let attached = frontend::attach(self);
        self.close_after(attached)?;
        self.follow_store()?;
        while !self.frontend.is_connected() {
            if self.frontend.is_closed() || Instant::now() >= deadline {
                let end = self.frontend.end().clone();
                let client = self.frontend.link().client().ok_or(xenstore::Error::Closed)?;
                let state = end.other_state(client)?;
                let path = end.other_path().to_owned();
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
