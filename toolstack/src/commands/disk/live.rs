//! The image of a disk that is served: asks the dom0 that serves it, and waits for what that changes.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use ring_abi::blkif::vdev::Vdev;

use crate::control::client::{self, ImageFile, ServedImage, ServedJob};
use crate::control::protocol::ImageQuery;
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::machine::listed_device::ListedDevice;
use crate::machine::listing::Listing;

/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a dom0 may answer that it does not serve the disk.
const UNSERVED: Duration = Duration::from_secs(3);
/// How often dom0 is asked whether it is made.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The disk of a running guest, as commands name it.
#[derive(Debug, clap::Args)]
pub(super) struct DiskArgs {
    /// The guest's name or domain ID
    domain: String,

    /// The disk: its name in the guest, or its number
    dev: String,

    /// The guest is a domain of the Xen host that this program runs on
    #[arg(long)]
    xen: bool,
}

impl DiskArgs {
    /// Finds it.
    ///
    /// # Errors
    /// As [`LiveDisk::find`].
    pub(super) fn find<'d>(&self, dir: &'d Dir) -> Result<LiveDisk<'d>> {
        LiveDisk::find(dir, self.xen, &self.domain, &self.dev)
    }
}

/// A disk that is served.
pub(super) struct LiveDisk<'d> {
    pub(super) listing: Listing,
    pub(super) device: ListedDevice,
    dir: &'d Dir,
    query: ImageQuery,
}

/// How a change ended.
pub(super) enum Outcome {
    /// It is made.
    Made,
    /// It was not made.
    Failed(String),
    /// Another dom0 serves the disk now, with this image; or it is not known whether it is another one.
    Replaced(ServedImage),
}

/// Whether the image's path names its file; so is said where it is not known.
fn is_at_its_path(image: &ServedImage) -> bool {
    let (Some(ImageFile { device, inode }), Some(path)) = (image.file, image.layers.first()) else {
        return true;
    };
    std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (device, inode))
}

impl<'d> LiveDisk<'d> {
    /// Finds a disk by the name or number of its guest and its own.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find(dir: &'d Dir, xen: bool, domain: &str, vdev: &str) -> Result<LiveDisk<'d>> {
        let Some(number) = Vdev::parse(vdev) else {
            let expected = "a device name such as xvda, or a number";
            return Err(Origin::argument("DEV").invalid("disk: vdev", vdev, expected));
        };
        let mut listing = Listing::open(dir, xen)?;
        let domain = listing.find_guest(domain)?;
        let mut devices = listing.devices(domain.domid, "vbd")?.into_iter();
        let device = devices.find(|device| device.id == number.number());
        let device = device.ok_or_else(|| Error::other(format!("{} has no disk {vdev}", domain.name)))?;
        let query = ImageQuery { domid: domain.domid.0, devid: device.id, ..ImageQuery::default() };
        Ok(LiveDisk { listing, device, dir, query })
    }

    /// The disk's image, as it is to be changed; `None` if it is raw. Where a snapshot was interrupted, so that its overlay is at the image's path
    /// and the guest writes below it, the guest goes over to that first.
    ///
    /// # Errors
    /// No dom0 of xpv's serves the disk, or another image is at the path, which the guest cannot go over to.
    pub(super) fn image(&self) -> Result<Option<ServedImage>> {
        let Some(image) = self.served()? else { return Ok(None) };
        if is_at_its_path(&image) {
            return Ok(Some(image));
        }
        match self.change("snapshot", None)? {
            Outcome::Made => self.served(),
            Outcome::Replaced(image) => Ok(Some(image)),
            Outcome::Failed(why) => {
                let path = image.layers.first().cloned().unwrap_or_default();
                let found = "found another file than the one that the guest has";
                Err(Error::other(format!(
                    "{}: {found}, and it cannot go over to that: {why}",
                    path.display()
                )))
            }
        }
    }

    /// The disk's image, whatever is at its path.
    pub(super) fn served(&self) -> Result<Option<ServedImage>> {
        client::image(self.dir, &self.query).map(|reply| reply.image)
    }

    /// Has dom0 make a change, and waits until it is made. What dom0 refuses to begin has failed; of one that goes away before it has answered
    /// it is not known.
    ///
    /// # Errors
    /// No dom0 answers in time.
    pub(super) fn change(&self, action: &str, bytes: Option<u64>) -> Result<Outcome> {
        self.change_watched(action, bytes, &mut |_| false)
    }

    /// As [`LiveDisk::change`], with a look at the job again and again while it runs; it is cancelled once `watch` says so. One that takes long has
    /// the time that it takes.
    ///
    /// # Errors
    /// As [`LiveDisk::change`].
    pub(super) fn change_watched(
        &self,
        action: &str,
        bytes: Option<u64>,
        watch: &mut dyn FnMut(&ServedJob) -> bool,
    ) -> Result<Outcome> {
        let query = ImageQuery { action: Some(action.to_owned()), bytes, ..self.query.clone() };
        let id = match client::image(self.dir, &query) {
            Ok(begun) => begun.job.map(|job| job.id),
            Err(Error::Other(why)) => return Ok(Outcome::Failed(why)),
            Err(_) => None,
        };
        let mut deadline = Instant::now() + PATIENCE;
        let mut unserved_since = None;
        loop {
            // While there is no dom0, its successor is waited for, which may not serve the disk at once.
            let asked = client::image(self.dir, &self.query);
            match &asked {
                Err(Error::Other(why)) => {
                    let since: &mut Instant = unserved_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > UNSERVED {
                        return Ok(Outcome::Failed(why.clone()));
                    }
                }
                _ => unserved_since = None,
            }
            let asked = asked.ok();
            let job = asked.as_ref().and_then(|reply| reply.job.as_ref());
            match (job.filter(|job| Some(job.id) == id), asked.as_ref().and_then(|reply| reply.image.clone()))
            {
                (Some(job), _) if !job.runs => {
                    return Ok(job.error.clone().map_or(Outcome::Made, Outcome::Failed));
                }
                (Some(job), _) if job.total.is_some() => {
                    deadline = Instant::now() + PATIENCE;
                    if watch(job) {
                        // Refused only if it has just ended, or lost, and sent again.
                        let query = ImageQuery { action: Some("cancel".to_owned()), ..self.query.clone() };
                        let _ = client::image(self.dir, &query);
                    }
                }
                (None, Some(image)) => return Ok(Outcome::Replaced(image)),
                _ => {}
            }
            if Instant::now() >= deadline {
                let what = format!("{action}: dom0 has not made the change within {} s", PATIENCE.as_secs());
                return Err(Error::other(what));
            }
            thread::sleep(POLL);
        }
    }
}
