//! `xpv disk snapshot`: keeps a running guest's image as it is, and has the guest go on in an overlay.
//!
//! The overlay takes the image's path, so that neither the guest's file nor the store changes. Both are exchanged in one step before dom0 is
//! asked: until it goes over, the guest writes to the image under its new name, over which the overlay is empty; whoever opens the path
//! in between, as a successor of a killed dom0, finds every write.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use blkback::engine::Mode;
use blkback::engine::format::{Format, NewImage};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::create::CLUSTER_BITS;
use super::live::{DiskArgs, LiveDisk, Outcome, POLL};
use crate::control::client::ServedImage;
use crate::dir::Dir;
use crate::error::{Error, Origin, Result};
use crate::image::chain;

/// How late dom0 may be with a change that it was asked for.
const LATE: Duration = Duration::from_secs(3);

/// Keep the image of a running guest's disk as it is, under a new name
///
/// The guest goes on without an interruption, in an overlay that takes the image's place: its line stays as it is. What is kept is consistent as
/// after a power cut, with all that the guest has flushed. Only qcow2 images have snapshots.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    disk: DiskArgs,

    /// The file's new name, in the directory in which it is
    name: String,
}

/// Makes the snapshot.
///
/// # Errors
/// The disk's image is none of qcow2, the name exists, or the image cannot be exchanged. Everything is as before then.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let is_name = !args.name.contains('/') && ![".", "..", ""].contains(&args.name.as_str());
    if !is_name {
        let expected = "a file's name: the image stays in its directory";
        return Err(Origin::argument("NAME").invalid("image", &args.name, expected));
    }
    let disk = args.disk.find(dir)?;
    let image = disk.image()?.ok_or_else(|| {
        let expected = "a qcow2 image: a raw one has no snapshots";
        Origin::argument("DEV").invalid("disk: format", "raw", expected)
    })?;
    let files = Files::new(&image, &args.name)?;
    files.make_overlay(image.bytes)?;
    files.exchange().inspect_err(|_| files.remove())?;
    match disk.change("snapshot", None)? {
        Outcome::Made => Ok(()),
        // A successor has opened the path, and with it the overlay; or the answer came late.
        Outcome::Replaced(_) | Outcome::Failed(_) if files.are_used(&disk) => Ok(()),
        Outcome::Replaced(_) => Err(Error::other(format!(
            "{}: dom0 went away meanwhile; the guest goes on in the overlay at {} when the disk is opened again",
            files.kept.display(),
            files.image.display()
        ))),
        Outcome::Failed(why) => {
            files.undo()?;
            Err(Error::other(why))
        }
    }
}

/// The files of a snapshot.
struct Files {
    /// The path of the guest's image, before and after.
    image: PathBuf,
    /// The path under which it is kept.
    kept: PathBuf,
}

impl Files {
    fn new(image: &ServedImage, name: &str) -> Result<Files> {
        let path = image.layers.first().ok_or_else(|| Error::other("dom0 names no image"))?;
        Ok(Files { image: path.clone(), kept: path.with_file_name(name) })
    }

    /// Whether the guest goes on in the overlay, which dom0 may be about to tell.
    fn are_used(&self, disk: &LiveDisk<'_>) -> bool {
        let deadline = Instant::now() + LATE;
        loop {
            let image = disk.served().ok().flatten();
            if image.is_some_and(|image| image.layers.get(1) == Some(&self.kept)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    /// Makes the overlay, under the name of what it is to be over.
    fn make_overlay(&self, bytes: u64) -> Result<()> {
        let failed = |e| Error::file(&self.kept, "making the overlay", e);
        let name = self.kept.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // With a slash before a colon: what is before it would be a protocol.
        let name = format!("./{name}");
        let format = Format::Qcow2.to_string();
        let new = NewImage { size: bytes, cluster_bits: CLUSTER_BITS, backing: Some((&name, &format)) };
        let new = new.bytes().map_err(|e| Error::other(format!("{}: qcow2: {e}", self.kept.display())))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.kept);
        let file = file.map_err(failed)?;
        self.write_overlay(&file, &new).inspect_err(|_| self.remove()).map_err(failed)
    }

    /// Writes it, with the owner and permissions of the image: whoever may use that may use this one.
    fn write_overlay(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        let meta = std::fs::metadata(&self.image)?;
        file.write_all(bytes)?;
        let own = file.metadata()?;
        if (meta.uid(), meta.gid()) != (own.uid(), own.gid()) {
            fchown(file, Some(meta.uid()), Some(meta.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        file.sync_all()
    }

    /// Exchanges the image and the overlay, in one step and for good.
    fn exchange(&self) -> Result<()> {
        let flags = RenameFlags::RENAME_EXCHANGE;
        let failed = |e| Error::file(&self.image, "exchanging it for its overlay", e);
        renameat2(AT_FDCWD, &self.image, AT_FDCWD, &self.kept, flags).map_err(|e| failed(e.into()))?;
        let directory = self.image.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Takes the exchange back, as dom0 has not gone over. Meanwhile nobody can open the overlay; who has it open already keeps it.
    fn undo(&self) -> Result<()> {
        let _lock = chain::open_image(&self.image, Format::Qcow2, Mode::Write)?;
        self.exchange()?;
        self.remove();
        Ok(())
    }

    /// Removes the overlay again.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.kept);
    }
}
