//! A guest's frontends: opened, used and closed by whoever has them in hand.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use blkfront::{Buffer, Completion, Disk, Operation, Options, Request};
use hypervisor::local::Domain;
use netfront::Nic;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use ring_abi::DomId;
use ring_abi::blkif::SECTOR;
use testkit::block::options;
use testkit::soak::{BLOCK, DISKS, Medium, VIFS};
use testkit::{BOUND, LossyStore, Machine};
use xenbus::{Device, DeviceEnd, XenbusState};
use xenstore::Client;

use super::dom0::{Dom0, join};

/// How often a frontend that waits looks whether its guest is killed.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often a frame that may be lost is sent.
const RESEND_INTERVAL: Duration = Duration::from_millis(50);

/// A guest: its domain, and its devices by their numbers.
pub(crate) struct GuestDomain {
    domain: Arc<Domain>,
    store: Arc<LossyStore>,
    killed: AtomicBool,
    pub(crate) disks: [Mutex<Option<Disk>>; DISKS],
    pub(crate) vifs: [Mutex<Option<Nic>>; VIFS],
}

impl GuestDomain {
    /// Joins the machine as a guest without devices.
    pub(crate) fn start(machine: &Machine, domid: DomId) -> GuestDomain {
        let domain = join(machine, domid);
        GuestDomain {
            store: LossyStore::new(domain.clone()),
            domain,
            killed: AtomicBool::new(false),
            disks: Default::default(),
            vifs: Default::default(),
        }
    }

    /// Begins the guest's end: it writes nothing more to the store, and nobody waits for its devices.
    pub(crate) fn kill(&self) {
        self.store.cut();
        self.killed.store(true, Ordering::Relaxed);
    }

    /// Whether the guest's end has begun.
    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// Opens a disk, which its toolstack has attached, unless told to stop.
    pub(crate) fn open_disk(&self, device: &Device, stop: &Stop) -> Option<Disk> {
        let Self { domain, store, .. } = self;
        let opened = Disk::open_until(
            domain.clone(),
            domain.clone(),
            store.clone(),
            device.id,
            Options { queues: 2, ..options() },
            stop.event.as_fd(),
        );
        opened.map_err(|error| self.give_up(device, &error)).ok().flatten()
    }

    /// Opens an interface, which its toolstack has attached, and waits until it is up, unless told to stop.
    pub(crate) fn open_vif(&self, device: &Device, stop: &Stop) -> Option<Nic> {
        let Self { domain, store, .. } = self;
        let config = netfront::Config::default();
        let opened = Nic::open(domain.clone(), domain.clone(), store.clone(), device.id, config);
        let mut nic = opened.map_err(|error| self.give_up(device, &error)).ok()?;
        while !nic.is_up() {
            if stop.told.load(Ordering::Relaxed) {
                let _ = nic.close();
                return None;
            }
            nic.wait(false, POLL_INTERVAL).map_err(|error| self.give_up(device, &error)).ok()?;
        }
        Some(nic)
    }

    /// Reports the error of a frontend that could not be opened, and closes it, as `xpv guest` does.
    fn give_up(&self, device: &Device, error: &dyn std::fmt::Display) {
        let end = DeviceEnd::front(device);
        let Ok(mut store) = Client::connect(&self.store) else { return };
        end.error(&mut store, Errno::EIO as i32, error);
        let _ = end.switch_state(&mut store, XenbusState::Closed);
    }

    /// Lets a disk follow its backend while `act` runs.
    pub(crate) fn serve_disk<T>(&self, disk: &mut Disk, act: impl FnOnce() -> T + Send) -> T
    where
        T: Send,
    {
        self.serve(act, || {
            let mut completions = Vec::new();
            // An error is that it is closed.
            let _ = disk.wait(&mut completions, Some(POLL_INTERVAL));
            disk.is_closed()
        })
    }

    /// Lets an interface follow its backend while `act` runs.
    pub(crate) fn serve_vif<T>(&self, nic: &mut Nic, act: impl FnOnce() -> T + Send) -> T
    where
        T: Send,
    {
        self.serve(act, || nic.wait(false, POLL_INTERVAL).is_err())
    }

    fn serve<T: Send>(&self, act: impl FnOnce() -> T + Send, mut turn: impl FnMut() -> bool) -> T {
        thread::scope(|scope| {
            let acting = scope.spawn(act);
            while !acting.is_finished() && !self.is_killed() {
                if turn() {
                    break;
                }
            }
            acting.join().unwrap()
        })
    }
}

/// Tells a frontend that is being opened to stop.
pub(crate) struct Stop {
    event: EventFd,
    told: AtomicBool,
}

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop { event: EventFd::new().unwrap(), told: AtomicBool::new(false) }
    }

    pub(crate) fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
        self.event.write(1).unwrap();
    }
}

/// A disk as what the soak writes to, until its guest is killed.
pub(crate) struct DiskMedium<'d> {
    pub(crate) guest: &'d GuestDomain,
    pub(crate) disk: &'d mut Disk,
}

impl DiskMedium<'_> {
    fn submit(&mut self, operation: Operation, block: u64, buffer: Buffer) -> io::Result<()> {
        let sector = block * (BLOCK / SECTOR) as u64;
        let request = Request { token: 0, operation, sector, bytes: BLOCK, buffer: Some(buffer) };
        self.disk.submit(request).map_err(|_| io::Error::other("the ring is full, or the disk closed"))
    }

    /// Waits for the completion of so many requests. Those of a guest that is killed stay in flight.
    fn wait(&mut self, count: usize) -> io::Result<Vec<Completion>> {
        let deadline = Instant::now() + BOUND;
        let mut completions = Vec::new();
        self.disk.commit().map_err(io::Error::other)?;
        while completions.len() < count {
            if self.guest.is_killed() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.disk.wait(&mut completions, Some(POLL_INTERVAL)).map_err(io::Error::other)?;
        }
        completions.iter().try_for_each(|completion| completion.check().map_err(io::Error::other))?;
        Ok(completions)
    }
}

impl Medium for DiskMedium<'_> {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
        let buffer = self.disk.buffer(BLOCK).map_err(io::Error::other)?;
        self.submit(Operation::Read, block, buffer)?;
        let completions = self.wait(1)?;
        let buffer = completions.first().and_then(|completion| completion.request.buffer.as_ref());
        buffer.ok_or(io::ErrorKind::InvalidData)?.copy_to(into);
        Ok(())
    }

    fn write(&mut self, blocks: &[(u64, [u8; BLOCK])]) -> io::Result<()> {
        for (block, bytes) in blocks {
            let buffer = self.disk.buffer(BLOCK).map_err(io::Error::other)?;
            buffer.fill(bytes);
            self.submit(Operation::Write, *block, buffer)?;
        }
        self.wait(blocks.len()).map(drop)
    }
}

/// Sends a frame from an interface to dom0's port and one back; both carry `token`.
pub(crate) fn exchange(nic: &mut Nic, dom0: &mut Dom0, token: u64) -> Result<(), String> {
    const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let mac = nic.mac();
    let frame = |to, from| {
        let mut frame = testkit::net::frame(to, from, 90, token as u8);
        frame[14..22].copy_from_slice(&token.to_le_bytes());
        frame
    };
    let out = frame(HOST, mac);
    let back = frame(mac, HOST);
    let deadline = Instant::now() + BOUND;
    let mut has_arrived = false;
    let mut resend = Instant::now();
    let mut into = [0; 2048];
    while Instant::now() < deadline {
        if Instant::now() >= resend {
            resend += RESEND_INTERVAL;
            if has_arrived {
                dom0.send(&back);
            } else {
                // Dropped while no backend is connected.
                let _ = nic.send(&out);
                nic.flush();
            }
        }
        if !has_arrived && dom0.received().contains(&out) {
            has_arrived = true;
            resend = Instant::now();
        }
        while let Some((len, _)) = nic.recv(&mut into) {
            if into[..len] == back {
                return Ok(());
            }
        }
        nic.wait(false, Duration::from_micros(200)).map_err(|error| error.to_string())?;
    }
    Err(format!("no frame {} within {BOUND:?}", if has_arrived { "to the guest" } else { "from the guest" }))
}
