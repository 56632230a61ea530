//! Changes of an image that is served, by a thread of its own: each as steps of the image's thread and of the process that opens images.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use blkback::engine::Mode;
use blkback::engine::format::{ImageControl, Progress};

use crate::opener::{Below, Holder, Opener, Refusal};

/// The device and inode numbers of a file.
pub(super) type FileId = (u64, u64);

/// What changes an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The disk becomes longer: bytes.
    Resize(u64),
    /// The guest goes on in the image that is at its image's path now, and is an overlay of the one that it has.
    Snapshot,
    /// What the image has moves into the one below.
    Commit,
    /// What the images below have is copied into the image, which leaves them.
    Stream,
}

impl Change {
    /// Its name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Change::Resize(_) => "resize",
            Change::Snapshot => "snapshot",
            Change::Commit => "commit",
            Change::Stream => "stream",
        }
    }

    /// Whether it goes on for long, and can be cancelled.
    pub fn is_long(self) -> bool {
        matches!(self, Change::Commit | Change::Stream)
    }
}

/// An image that is changed.
pub(super) struct Changing<'a> {
    pub(super) opener: &'a Opener,
    pub(super) control: &'a ImageControl,
    /// The device's number as a user of images.
    pub(super) user: u64,
    /// The files of the image and of those below it.
    pub(super) files: Vec<FileId>,
    /// Names another disk of this process that has a file.
    pub(super) other_user: &'a dyn Fn(FileId) -> Option<String>,
}

impl Changing<'_> {
    /// Makes a change. Returns the files of the image and of those below it from now on.
    ///
    /// # Errors
    /// Why it was not made.
    pub(super) fn make(mut self, change: Change, progress: &Arc<Progress>) -> Result<Vec<FileId>, String> {
        match change {
            Change::Resize(bytes) => self.control.resize(bytes).map_err(shown)?,
            Change::Snapshot => self.snapshot()?,
            Change::Commit => self.commit(progress)?,
            Change::Stream => {
                self.control.stream(progress.clone()).map_err(shown)?;
                self.files.truncate(1);
            }
        }
        Ok(self.files)
    }

    /// Has the guest go on in an overlay, which the administrator has put at the path of its image.
    fn snapshot(&mut self) -> Result<(), String> {
        let info = self.control.info();
        let path = info.layers.first().ok_or("found no image")?;
        let opened = self.opener.open_overlay(path, Some(self.user));
        let (overlay, below) = opened.map_err(|refusal| self.refused(refusal))?;
        let (Some(Below { path: kept, file }), own) = (below, self.files.first()) else {
            return Err(of_another(path));
        };
        if own != Some(&file) {
            return Err(of_another(path));
        }
        let opened = overlay.layers.first().and_then(|layer| layer.image.file().metadata().ok());
        self.control.snapshot(overlay).map_err(|e| format!("{}: {}", path.display(), shown(e)))?;
        self.files.splice(0..0, opened.map(|file| (file.dev(), file.ino())));
        // The guest goes on all the same: others may not read what was kept before this process has ended.
        if let Err(why) = self.reopen_below(&kept, Mode::Read) {
            tracing::warn!(%why, "the image that was kept stays locked");
        }
        Ok(())
    }

    /// Moves what the image has into the one below, which is open for writing meanwhile.
    fn commit(&self, progress: &Arc<Progress>) -> Result<(), String> {
        let info = self.control.info();
        let below = info.layers.get(1).ok_or("found an image without a backing file, expected one")?;
        if let Some(user) = self.files.get(1).and_then(|file| (self.other_user)(*file)) {
            return Err(in_use(below, &user));
        }
        self.reopen_below(below, Mode::Write)?;
        let outcome = self.control.commit(progress.clone()).map_err(shown);
        if let Err(why) = self.reopen_below(below, Mode::Read) {
            tracing::warn!(%why, "the backing file stays locked");
        }
        outcome
    }

    /// Opens the image below in another mode, by its path.
    fn reopen_below(&self, path: &Path, mode: Mode) -> Result<(), String> {
        let (_, format, held) = self.control.open_file(1).map_err(shown)?;
        let opened = self.opener.open_again(path, format, mode, &held);
        let layer = opened.map_err(|refusal| self.refused(refusal))?;
        self.control.replace(1, layer).map_err(|e| format!("{}: {}", path.display(), shown(e)))
    }

    /// The text of a refusal, with the name of who has the image.
    fn refused(&self, refusal: Refusal) -> String {
        match refusal {
            Refusal::InUse { path, holder, file, holders } => {
                let ours = file.and_then(self.other_user);
                let others = holders.iter().find_map(Holder::describe);
                in_use(&path, &ours.or(others).unwrap_or(holder))
            }
            Refusal::Claimed { what, .. } | Refusal::Failed { what, .. } => what,
        }
    }
}

fn of_another(path: &Path) -> String {
    let expected = "one of the image that the guest has";
    format!("{}: found an overlay of another image, expected {expected}", path.display())
}

fn in_use(path: &Path, holder: &str) -> String {
    format!("{}: in use by {holder}", path.display())
}

fn shown(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(nix::libc::ECANCELED) => "cancelled".to_owned(),
        _ => crate::error::chain(&error).to_string(),
    }
}
