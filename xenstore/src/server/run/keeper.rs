// Not a core: does I/O or calls a hypervisor.

//! The file by which a store that was killed is succeeded: an image of all that it held, and its journal since.
//!
//! Changes are written before they are replied to, by one `write` for all of a turn of the loop. What a process has written
//! stays when it is killed; nothing is synchronised to the disk, as what the store describes are processes. Once the journal is
//! larger than the image, another thread writes a new image into a new file, which then gets what has changed meanwhile, and
//! replaces the old one.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use nix::fcntl::OFlag;
use nix::sys::eventfd::EventFd;
use nix::unistd::geteuid;

use crate::server::Image;

/// The journal's bytes at which a new image is made, if they are as many as twice the image's too.
const LEAST_JOURNAL: u64 = 1 << 20;
/// The bytes of changes while a new image is written, at which the store waits for it.
const MOST_MEANWHILE: usize = 16 << 20;
/// The largest file that is read.
const MOST_BYTES: u64 = 4 << 30;

/// The file of a running store.
pub(super) struct Keeper {
    path: PathBuf,
    file: File,
    image_len: u64,
    journal_len: u64,
    successor: Option<NewFile>,
    /// Wakes the loop when a new image is written.
    wake: Arc<EventFd>,
}

/// A new file whose image another thread writes.
struct NewFile {
    written: Receiver<io::Result<(File, u64)>>,
    /// The changes since its image.
    meanwhile: Vec<u8>,
}

impl Keeper {
    /// Writes a file with an image, which replaces the one at `path`.
    pub(super) fn create(path: &Path, image: &Image, wake: Arc<EventFd>) -> io::Result<Keeper> {
        let (file, image_len) = write_image(path, image)?;
        fs::rename(new_path(path), path)?;
        Ok(Keeper { path: path.to_owned(), file, image_len, journal_len: 0, successor: None, wake })
    }

    /// Appends frames of changes, and has a new image made by `image` where there are many.
    ///
    /// # Errors
    /// Those of writing, for want of space for instance. The file is not complete then.
    pub(super) fn append(&mut self, frames: &[u8], image: impl FnOnce() -> Image) -> io::Result<()> {
        if !frames.is_empty() {
            self.file.write_all(frames)?;
            self.journal_len += frames.len() as u64;
        }
        match &mut self.successor {
            Some(successor) => {
                successor.meanwhile.extend(frames);
                self.replace()
            }
            None if self.journal_len >= LEAST_JOURNAL.max(2 * self.image_len) => self.begin(image()),
            None => Ok(()),
        }
    }

    /// Has another thread write a new image.
    fn begin(&mut self, image: Image) -> io::Result<()> {
        let (sender, written) = sync_channel(1);
        let path = self.path.clone();
        let wake = self.wake.clone();
        let write = move || {
            let _ = sender.send(write_image(&path, &image));
            // Freed by this thread.
            drop(image);
            let _ = wake.write(1);
        };
        std::thread::Builder::new().name("xenstored-image".into()).spawn(write)?;
        self.successor = Some(NewFile { written, meanwhile: Vec::new() });
        Ok(())
    }

    /// Goes on with the new file, if its image is written.
    fn replace(&mut self) -> io::Result<()> {
        let Some(successor) = &self.successor else { return Ok(()) };
        let ended = || io::Error::other("the thread that writes an image has ended");
        let (mut file, image_len) = if successor.meanwhile.len() > MOST_MEANWHILE {
            successor.written.recv().map_err(|_| ended())??
        } else {
            match successor.written.try_recv() {
                Ok(written) => written?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(ended()),
            }
        };
        file.write_all(&successor.meanwhile)?;
        fs::rename(new_path(&self.path), &self.path)?;
        self.journal_len = successor.meanwhile.len() as u64;
        self.file = file;
        self.image_len = image_len;
        self.successor = None;
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

/// Removes what a store has kept at `path`, if anything.
pub(super) fn remove(path: &Path) {
    for path in [path, &new_path(path)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), %error, "failed to remove the store's state");
            }
            _ => {}
        }
    }
}

impl Image {
    /// Reads what a store that was killed has kept at `path`; `None` if there is nothing.
    ///
    /// # Errors
    /// The file cannot be read; InvalidData where it is damaged, or not this user's alone.
    pub fn read(path: &Path) -> io::Result<Option<Image>> {
        let invalid = |what: String| io::Error::new(ErrorKind::InvalidData, what);
        let mut options = File::options();
        let file = options.read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
        let file = match file {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let found = file.metadata()?;
        let own = geteuid().as_raw();
        if !found.is_file() || found.uid() != own || found.mode() & 0o077 != 0 {
            let mode = found.mode() & 0o7777;
            return Err(invalid(format!("user {}'s of mode {mode:o}, expected {own}'s alone", found.uid())));
        }
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Image::decode(&bytes).map(Some).ok_or_else(|| invalid("damaged".into()))
    }
}

fn new_path(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes an image into the new file beside `path`; returns it and its length.
fn write_image(path: &Path, image: &Image) -> io::Result<(File, u64)> {
    let new = new_path(path);
    let _ = fs::remove_file(&new);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut len = 0;
    let mut writer = BufWriter::new(file);
    image.write(|part| {
        len += part.len() as u64;
        writer.write_all(part)
    })?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Core, Quotas};
    use crate::wire::Message;
    use nix::sys::eventfd::EfdFlags;
    use ring_abi::xs_wire::MessageType;

    #[test]
    fn journal_is_replaced_by_an_image_before_it_grows_without_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.state");
        let wake = Arc::new(EventFd::from_flags(EfdFlags::empty()).unwrap());
        let mut core = Core::new(Quotas::default());
        let client = core.connect();
        let mut keeper = Keeper::create(&path, &core.keep(), wake).unwrap();
        let mut total = 0;
        let mut largest = 0;
        for number in 0..20_000u32 {
            let payload = [format!("/a/{}\0", number % 50).as_bytes(), &[b'x'; 1000]].concat();
            core.input(client, &Message::new(MessageType::Write, 1, 0, payload).to_bytes());
            while core.step() {}
            core.sent(client, core.output(client).len());
            let mut frames = Vec::new();
            core.take_journal(&mut frames);
            total += frames.len() as u64;
            keeper.append(&frames, || core.image()).unwrap();
            largest = largest.max(fs::metadata(&path).unwrap().len());
            if number % 997 == 0 {
                let kept = Image::read(&path).unwrap().unwrap();
                assert!(kept.to_bytes() == core.image().to_bytes());
            }
        }
        assert!(total > 19 << 20);
        // The new image is written meanwhile, while the journal goes on.
        assert!(largest < LEAST_JOURNAL + MOST_MEANWHILE as u64, "{largest}");
        let kept = Image::read(&path).unwrap().unwrap();
        assert!(kept.to_bytes() == core.image().to_bytes());
        keeper.remove();
        assert!(Image::read(&path).unwrap().is_none());
    }

    #[test]
    fn file_that_others_may_read_or_a_link_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.state");
        let wake = Arc::new(EventFd::from_flags(EfdFlags::empty()).unwrap());
        Keeper::create(&path, &Core::new(Quotas::default()).keep(), wake).unwrap();
        assert!(Image::read(&path).unwrap().is_some());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Image::read(&link).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Image::read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
