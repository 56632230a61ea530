//! The images of the disks that are served, for who asks about them or changes them meanwhile (docs/control.md). A change is a job on a thread
//! of its own: one of a disk at a time.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use blkback::Disk;
use blkback::engine::format::{ImageControl, ImageInfo};
use xenbus::Device;

use crate::opener::{Opener, Refusal};

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
    /// The device and inode numbers of the image that the guest writes to.
    file: Option<(u64, u64)>,
    job: Option<Arc<Job>>,
}

/// What changes an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The disk becomes longer: bytes.
    Resize(u64),
    /// The guest goes on in the image that is at its image's path now, and is an overlay of the one that it has.
    Snapshot,
}

/// A change that is being made, or was.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// `Ok` once it is made; why it could not be made.
    pub outcome: OnceLock<Result<(), String>>,
}

impl ImageControls {
    pub(super) fn new(opener: Opener) -> ImageControls {
        let first = u64::from(std::process::id()) << 32;
        let next_job = AtomicU64::new(first);
        ImageControls(Arc::new(Shared { opener, served: Mutex::default(), next_job }))
    }

    /// Enters a device's open disk.
    pub(super) fn insert(&self, device: &Device, user: u64, file: Option<(u64, u64)>, disk: &Arc<dyn Disk>) {
        let served = Served { disk: Arc::downgrade(disk), user, file, job: None };
        let mut all = self.0.served.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, served| served.disk.strong_count() > 0);
        all.insert((device.front.0, device.id), served);
    }

    /// A disk's image, if it has a format that can be asked, and the last job of it.
    ///
    /// # Errors
    /// No such disk is served.
    pub fn show(&self, domid: u16, devid: u32) -> Result<(Option<ImageInfo>, Option<Arc<Job>>), String> {
        self.with(domid, devid, |served, disk| {
            Ok((disk.image().map(|control| control.info()), served.job.clone()))
        })
    }

    /// Begins to change a disk's image.
    ///
    /// # Errors
    /// No such disk is served, its image is raw, or it is being changed.
    pub fn start(&self, domid: u16, devid: u32, change: Change) -> Result<Arc<Job>, String> {
        self.with(domid, devid, |served, disk| {
            let control = disk.image().ok_or("found a raw image, expected a qcow2 one")?;
            if served.job.as_ref().is_some_and(|job| job.outcome.get().is_none()) {
                return Err("found a change of the image that goes on, expected none".into());
            }
            let id = self.0.next_job.fetch_add(1, Ordering::Relaxed);
            let job = Arc::new(Job { id, outcome: OnceLock::new() });
            let (of_thread, images) = (job.clone(), self.clone());
            let (user, file) = (served.user, served.file);
            let run = move || {
                let outcome = match change {
                    Change::Resize(bytes) => control.resize(bytes).map_err(|e| shown(&e)),
                    Change::Snapshot => images.snapshot((domid, devid), &control, user, file),
                };
                tracing::info!(domid, devid, ?change, ?outcome, "image changed");
                let _ = of_thread.outcome.set(outcome);
            };
            let started = std::thread::Builder::new().name("image".into()).spawn(run);
            started.map_err(|e| format!("starting a thread: {e}"))?;
            served.job = Some(job.clone());
            Ok(job)
        })
    }

    fn with<T>(
        &self,
        domid: u16,
        devid: u32,
        act: impl FnOnce(&mut Served, &dyn Disk) -> Result<T, String>,
    ) -> Result<T, String> {
        let mut all = self.0.served.lock().unwrap_or_else(PoisonError::into_inner);
        let served = all.get_mut(&(domid, devid));
        let found = served.and_then(|served| served.disk.upgrade().map(|disk| (served, disk)));
        let (served, disk) = found.ok_or_else(|| format!("disk {devid} of domain {domid} is not served"))?;
        act(served, &*disk)
    }

    /// Has the guest go on in an overlay, which the administrator has put at the path of its image.
    fn snapshot(
        &self,
        device: (u16, u32),
        control: &ImageControl,
        user: u64,
        file: Option<(u64, u64)>,
    ) -> Result<(), String> {
        let info = control.info();
        let path = info.layers.first().ok_or("found no image")?;
        let (overlay, below) = self.0.opener.open_overlay(path, Some(user)).map_err(refused)?;
        if below.is_none() || below != file {
            let expected = "one of the image that the guest has";
            return Err(format!(
                "{}: found an overlay of another image, expected {expected}",
                path.display()
            ));
        }
        let opened = overlay.layers.first().and_then(|layer| layer.image.file().metadata().ok());
        control.snapshot(overlay).map_err(|e| format!("{}: {}", path.display(), shown(&e)))?;
        let mut all = self.0.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = all.get_mut(&device) {
            served.file = opened.map(|file: Metadata| (file.dev(), file.ino()));
        }
        Ok(())
    }
}

/// The text of a refusal.
fn refused(refusal: Refusal) -> String {
    match refusal {
        Refusal::InUse { path, holder, .. } => in_use(&path, &holder),
        Refusal::Claimed { what, .. } | Refusal::Failed { what, .. } => what,
    }
}

fn in_use(path: &Path, holder: &str) -> String {
    format!("{}: in use by {holder}", path.display())
}

fn shown(error: &io::Error) -> String {
    crate::error::chain(error).to_string()
}
