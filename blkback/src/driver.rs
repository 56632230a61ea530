// Not a core: does I/O or calls a hypervisor.

//! The driver for devices of kind `vbd`: opens the disk of each and makes the device.

use std::sync::Arc;

use event_channel::WaitEventChannels;
use grant_table::{GrantTable, PageBudget};
use inflight::InflightDir;
use ring_abi::blkif::key;
use xenbus::driver::{BackDevice, BackDriver, DeviceState, Failure, Waker};
use xenbus::handshake::back::Handshake;
use xenbus::{Device, Keys, XenbusState};

use crate::config::{DataPath, Tuning};
use crate::device::{RECONNECT, VbdDevice};
use crate::device_limits::DeviceLimits;
use crate::device_stats::DeviceStats;
use crate::disk_queue::DiskQueues;
use crate::disk_watch::DiskWatch;
use crate::engine::{Disk, DiskInfo, OpenError, Spec, open};
use crate::handshake::{MAX_INDIRECT_SEGMENTS, MAX_QUEUES, Offer};
use crate::medium::Media;
use crate::records::Records;
use crate::throttle::ThrottleGroups;

/// Opens the disk of a device, given its keys in the backend's directory.
pub type Opener = Box<dyn FnMut(&Device, &Keys) -> Result<Arc<dyn Disk>, Failure> + Send>;

/// Segments that Linux's backend offers: 1 MiB.
const LINUX_INDIRECT_SEGMENTS: u16 = 256;

/// The driver of all `vbd` devices of a domain.
pub struct VbdDriver {
    grants: Arc<dyn GrantTable>,
    channels: Arc<dyn WaitEventChannels>,
    opener: Opener,
    tuning: Tuning,
    inflight_dir: Option<InflightDir>,
    page_budget: PageBudget,
    max_queues: u32,
    max_indirect_segments: u16,
    disk_queues: DiskQueues,
    media: Media,
    throttle_groups: ThrottleGroups,
}

impl VbdDriver {
    /// Makes a driver that opens the disks that the devices' keys describe ([`Spec`]).
    pub fn new(grants: Arc<dyn GrantTable>, channels: Arc<dyn WaitEventChannels>) -> VbdDriver {
        VbdDriver::with_opener(grants, channels, Box::new(|_, keys| open_keys(keys)))
    }

    /// Makes a driver that opens disks by `opener`. Of the devices for which it returns the same `Arc` only the
    /// youngest uses the disk, once the others have released it.
    pub fn with_opener(
        grants: Arc<dyn GrantTable>,
        channels: Arc<dyn WaitEventChannels>,
        opener: Opener,
    ) -> VbdDriver {
        VbdDriver {
            grants,
            channels,
            opener,
            tuning: Tuning::default(),
            inflight_dir: None,
            page_budget: PageBudget::new(usize::MAX),
            max_queues: 1,
            max_indirect_segments: LINUX_INDIRECT_SEGMENTS,
            disk_queues: DiskQueues::default(),
            media: Media::default(),
            throttle_groups: ThrottleGroups::default(),
        }
    }

    /// Sets the parameters of devices that appear from now on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// Limits the pages of persistent grants that the rings of devices that appear from now on keep mapped together; without it each
    /// ring has as many as Linux's backend gives one ([`LINUX_MAX`](grant_table::persist::LINUX_MAX)). On Linux each such page is one of
    /// the `vm.max_map_count` mappings of the process.
    pub fn set_max_persistent_grants(&mut self, pages: usize) {
        self.page_budget = PageBudget::new(pages);
    }

    /// Sets how many queues are offered to the frontends of devices that appear from now on, 1 to [`MAX_QUEUES`]; 1 by
    /// default. Each queue that a frontend uses has a thread, a ring, an engine of the disk and persistent grants of its own.
    pub fn set_max_queues(&mut self, queues: u32) {
        self.max_queues = queues.clamp(1, MAX_QUEUES);
    }

    /// Sets how many segments of an indirect request are offered to the frontends of devices that appear from now on, at most
    /// [`MAX_INDIRECT_SEGMENTS`]; 256 by default, as by Linux's backend (`MAX_INDIRECT_SEGMENTS` of xen-blkback), and with 0 none.
    pub fn set_max_indirect_segments(&mut self, segments: u16) {
        self.max_indirect_segments = segments.min(MAX_INDIRECT_SEGMENTS);
    }

    /// Records requests in flight of devices that appear from now on, so that a successor of this process resumes
    /// their rings. For frontends that do not reconnect by themselves, on hypervisors where a successor can bind the
    /// same event channel, as on Xen.
    pub fn set_inflight_dir(&mut self, dir: InflightDir) {
        self.inflight_dir = Some(dir);
    }

    /// Frontends whose rings are not resumed reconnect by themselves.
    fn handshake(&self, seen: &DeviceState) -> Handshake {
        let handshake = Handshake::new(RECONNECT, seen);
        if self.inflight_dir.is_some() { handshake } else { handshake.serving_detached(seen) }
    }
}

impl BackDriver for VbdDriver {
    fn kind(&self) -> &str {
        "vbd"
    }

    fn frontend_keys(&self) -> &'static [&'static str] {
        &crate::handshake::FRONTEND_KEYS
    }

    fn probe(
        &mut self,
        device: &Device,
        seen: &DeviceState,
        waker: Waker,
    ) -> Result<Box<dyn BackDevice>, Failure> {
        DeviceLimits::check(&seen.own).map_err(|error| Failure::new(libc::EINVAL, error))?;
        let disk = (self.opener)(device, &seen.own)?;
        let info = disk.info().map_err(|e| failure(&e, format!("{}: {}: {e}", key::PARAMS, disk.name())))?;
        refuse_smaller(&*disk, info, seen)?;
        tracing::info!(disk = disk.name(), sectors = info.sectors, "disk opened");
        let grants = self.grants.for_device().map_err(|e| Failure::new(libc::EIO, e))?;
        let limits_waker = waker.clone();
        let mut vbd = VbdDevice {
            device: device.clone(),
            grants: grants.unwrap_or_else(|| self.grants.clone()),
            channels: self.channels.clone(),
            tuning: self.tuning,
            handshake: self.handshake(seen),
            connection: None,
            stopping: false,
            suspended: None,
            claim: self.disk_queues.join(&disk, waker.clone()),
            advertised: info,
            watch: Arc::new(DiskWatch::new(info, waker.clone())),
            offer: Offer {
                persistent: self.tuning.data_path == DataPath::Persistent,
                max_queues: self.max_queues,
                max_indirect_segments: self.max_indirect_segments,
            },
            stats: Arc::new(DeviceStats::new(disk.cache())),
            disk,
            waker,
            records: Records::new(self.inflight_dir.clone(), device),
            page_budget: self.page_budget.clone(),
            media: self.media.clone(),
            limits: DeviceLimits::new(self.throttle_groups.join(Box::new(move || limits_waker.wake()))),
        };
        vbd.resume(seen)?;
        Ok(Box::new(vbd))
    }
}

/// Opens the disk that a backend's keys describe ([`Spec`]).
///
/// # Errors
/// EINVAL if a key is invalid; that of an [`OpenError`] if the disk cannot be opened.
pub fn open_keys(keys: &Keys) -> Result<Arc<dyn Disk>, Failure> {
    let spec = Spec::from_keys(keys).map_err(|e| Failure::new(libc::EINVAL, e))?;
    Ok(open(&spec)?)
}

/// Refuses what is smaller than the disk that a guest was served by an earlier process, whose image may have been replaced since: the
/// guest has a file system of the former size. The device waits, as for an image that is missing.
fn refuse_smaller(disk: &dyn Disk, info: DiskInfo, seen: &DeviceState) -> Result<(), Failure> {
    use XenbusState::{Closed, Initialising, Unknown};
    let served = seen.own.opt(key::SECTORS).ok().flatten().unwrap_or(0);
    if matches!(seen.own_state, Unknown | Initialising | Closed) || info.sectors >= served {
        return Ok(());
    }
    let what = format!(
        "{}: {}: found {} sectors of 512 bytes, expected at least {served}, as its guest was told",
        key::PARAMS,
        disk.name(),
        info.sectors
    );
    Err(Failure::new(libc::EINVAL, what))
}

impl From<OpenError> for Failure {
    /// EBUSY, which may pass, if the image is locked, EACCES if it is not writable, the errno of a system call that
    /// failed, otherwise EINVAL.
    fn from(error: OpenError) -> Failure {
        match &error {
            OpenError::Io { source, .. } => failure(source, &error),
            OpenError::InUse { .. } | OpenError::Draining { .. } => Failure::in_use_for_now(&error),
            OpenError::Claimed { .. } => Failure::new(libc::EBUSY, &error),
            OpenError::ReadOnly { .. } | OpenError::Denied { .. } => Failure::new(libc::EACCES, &error),
            _ => Failure::new(libc::EINVAL, &error),
        }
    }
}

fn failure(error: &std::io::Error, what: impl ToString) -> Failure {
    Failure::new(error.raw_os_error().unwrap_or(libc::EIO), what)
}
