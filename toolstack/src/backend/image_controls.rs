//! The images of the disks that are served, for who asks about them or changes them meanwhile (docs/control.md). A change is a job on a thread
//! of its own: one of a disk at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use blkback::Disk;
use blkback::engine::format::{ImageControl, ImageInfo, Progress};
use ring_abi::blkif::vdev::Vdev;
use xenbus::Device;

use super::image_changes::{Change, Changing, FileId};
use crate::opener::Opener;

/// The images.
#[derive(Clone)]
pub struct ImageControls(Arc<Shared>);

struct Shared {
    opener: Opener,
    /// By the frontend's domain and the device's number.
    served: Mutex<BTreeMap<(u16, u32), Served>>,
    /// The next job's number, unlike those of other processes.
    next_job: AtomicU64,
}

struct Served {
    disk: Weak<dyn Disk>,
    /// The device's number as a user of images.
    user: u64,
    /// The files of the image that the guest writes to, and of those below it.
    files: Vec<FileId>,
    job: Option<Arc<Job>>,
}

/// What is told of a disk's image.
pub struct Shown {
    /// The image, if it has a format that can be asked.
    pub image: Option<ImageInfo>,
    /// The device and inode numbers of its file, by which it is known whether another one is at its path now.
    pub file: Option<FileId>,
    /// The last change of it.
    pub job: Option<Arc<Job>>,
}

/// A change that is being made, or was.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// What it changes.
    pub change: Change,
    /// How far it is, if it is one that takes long.
    pub progress: Arc<Progress>,
    /// `Ok` once it is made; why it could not be made.
    pub outcome: OnceLock<Result<(), String>>,
}

impl Job {
    /// Whether it is being made.
    pub fn runs(&self) -> bool {
        self.outcome.get().is_none()
    }
}

impl ImageControls {
    pub(super) fn new(opener: Opener) -> ImageControls {
        let first = u64::from(std::process::id()) << 32;
        let next_job = AtomicU64::new(first);
        ImageControls(Arc::new(Shared { opener, served: Mutex::default(), next_job }))
    }

    /// Enters a device's open disk, with the files of its image and of those below it.
    pub(super) fn insert(&self, device: &Device, user: u64, files: Vec<FileId>, disk: &Arc<dyn Disk>) {
        let served = Served { disk: Arc::downgrade(disk), user, files, job: None };
        let mut all = self.served();
        all.retain(|_, served| served.disk.strong_count() > 0);
        all.insert((device.front.0, device.id), served);
    }

    /// A disk's image, and the last change of it.
    ///
    /// # Errors
    /// No such disk is served.
    pub fn show(&self, domid: u16, devid: u32) -> Result<Shown, String> {
        self.with(domid, devid, |served, disk| {
            let image = disk.image().map(|control| control.info());
            Ok(Shown { image, file: served.files.first().copied(), job: served.job.clone() })
        })
    }

    /// Begins to change a disk's image.
    ///
    /// # Errors
    /// No such disk is served, its image is raw or only read, has nothing below it that the change needs, or is being changed.
    pub fn start(&self, domid: u16, devid: u32, change: Change) -> Result<Arc<Job>, String> {
        self.with(domid, devid, |served, disk| {
            let control = disk.image().ok_or("found a raw image, expected a qcow2 one")?;
            if disk.info().is_ok_and(|info| info.read_only) {
                return Err("found a disk that is only read, expected one that is written".into());
            }
            if let Some(job) = served.job.as_ref().filter(|job| job.runs()) {
                let what = job.change.name();
                return Err(format!("found a {what} of the image that goes on, expected no change"));
            }
            if change.is_long() && control.info().layers.len() < 2 {
                return Err("found an image without a backing file, expected one with a backing file".into());
            }
            let id = self.0.next_job.fetch_add(1, Ordering::Relaxed);
            let job = Arc::new(Job { id, change, progress: Arc::default(), outcome: OnceLock::new() });
            let (of_thread, images) = (job.clone(), self.clone());
            let (user, files) = (served.user, served.files.clone());
            let run = move || images.run((domid, devid), &control, user, files, &of_thread);
            let started = std::thread::Builder::new().name("image".into()).spawn(run);
            started.map_err(|e| format!("starting a thread: {e}"))?;
            served.job = Some(job.clone());
            Ok(job)
        })
    }

    /// Has the change of a disk's image end that goes on. What it has done stays done.
    ///
    /// # Errors
    /// No such disk is served, or none goes on that can end.
    pub fn cancel(&self, domid: u16, devid: u32) -> Result<(), String> {
        self.with(domid, devid, |served, _| {
            let job = served.job.as_ref().filter(|job| job.runs() && job.change.is_long());
            let job = job.ok_or("found no change of the image that goes on, expected a commit or stream")?;
            job.progress.cancel();
            Ok(())
        })
    }

    /// Makes a change, by the thread of its job.
    fn run(&self, device: (u16, u32), control: &ImageControl, user: u64, files: Vec<FileId>, job: &Job) {
        let other_user = |file: FileId| self.other_user(device, file);
        let changing = Changing { opener: &self.0.opener, control, user, files, other_user: &other_user };
        let made = changing.make(job.change, &job.progress);
        let outcome = made.map(|files| {
            if let Some(served) = self.served().get_mut(&device) {
                served.files = files;
            }
        });
        let (domid, devid) = device;
        tracing::info!(domid, devid, change = ?job.change, ?outcome, "image changed");
        let _ = job.outcome.set(outcome);
    }

    /// Names a disk that has a file, other than one.
    fn other_user(&self, than: (u16, u32), file: FileId) -> Option<String> {
        let all = self.served();
        let has_it = |served: &Served| served.disk.strong_count() > 0 && served.files.contains(&file);
        let (&(domid, devid), _) = all.iter().find(|(device, served)| **device != than && has_it(served))?;
        Some(format!("disk {} of domain {domid}", Vdev::from_number(devid)))
    }

    fn with<T>(
        &self,
        domid: u16,
        devid: u32,
        act: impl FnOnce(&mut Served, &dyn Disk) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut all = self.served();
        let served = all.get_mut(&(domid, devid));
        let found = served.and_then(|served| served.disk.upgrade().map(|disk| (served, disk)));
        let (served, disk) = found.ok_or_else(|| format!("disk {devid} of domain {domid} is not served"))?;
        act(served, &*disk)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<(u16, u32), Served>> {
        self.0.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
