//! The images of a soak: files that are in use by a device, or free.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::content::{BLOCK, BLOCKS, Content, Medium};
use super::state::{BadDisk, IMAGES};

/// Images in a directory.
pub struct Images {
    directory: PathBuf,
    images: Vec<Mutex<Image>>,
}

/// An image: what it holds, and whether a device has had it since it was found free.
pub struct Image {
    /// What it holds.
    pub content: Content,
    used: bool,
}

impl Images {
    /// Makes images of zeroes in a directory.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(directory: &Path) -> io::Result<Images> {
        let images = Images { directory: directory.to_owned(), images: Vec::new() };
        (0..IMAGES).try_for_each(|index| File::create(images.path(index))?.set_len(BLOCKS * BLOCK as u64))?;
        // Not a whole sector.
        File::create(images.bad_path(BadDisk::Short))?.set_len(511)?;
        let image = |index| Mutex::new(Image { content: Content::new(index), used: false });
        Ok(Images { images: (0..IMAGES).map(image).collect(), ..images })
    }

    /// The file of an image.
    pub fn path(&self, index: usize) -> PathBuf {
        self.directory.join(format!("{index}.img"))
    }

    /// The file of a disk that cannot be attached.
    pub fn bad_path(&self, bad: BadDisk) -> PathBuf {
        match bad {
            BadDisk::Short => self.directory.join("short.img"),
            BadDisk::Missing => self.directory.join("missing.img"),
            BadDisk::InUse(index) => self.path(index),
        }
    }

    /// An image, for the user of its disk.
    pub fn get(&self, index: usize) -> MutexGuard<'_, Image> {
        self.images[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that an image can be locked, as a backend does that opens it.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_unlocked(&self, index: usize) -> Result<(), String> {
        let path = self.path(index);
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => Ok(()),
            Err((_, errno)) => Err(format!("{} is in use: {errno}", path.display())),
        }
    }

    /// Checks that an image is unlocked and holds what was written to it, if it was used since the last check.
    ///
    /// # Errors
    /// It is locked, or holds something else.
    pub fn check_free(&self, index: usize) -> Result<(), String> {
        let mut image = self.get(index);
        if image.used {
            self.check_unlocked(index)?;
            let path = self.path(index);
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let mut file = FileMedium(File::open(&path).map_err(|error| failed(&error))?);
            image.content.check_all(&mut file).map_err(|error| failed(&error))?;
            image.used = false;
        }
        Ok(())
    }
}

impl Image {
    /// Writes to the disk that has this image, and reads from it: all of it the first time.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self, medium: &mut impl Medium) -> Result<(), String> {
        let is_new = !std::mem::replace(&mut self.used, true);
        self.content.exercise(medium).map_err(|error| error.to_string())?;
        match is_new {
            true => self.content.check_all(medium).map_err(|error| error.to_string()),
            false => Ok(()),
        }
    }
}

/// The image itself.
struct FileMedium(File);

impl Medium for FileMedium {
    fn read(&mut self, block: u64, into: &mut [u8; BLOCK]) -> io::Result<()> {
        self.0.read_exact_at(into, block * BLOCK as u64)
    }

    fn write(&mut self, blocks: &[(u64, [u8; BLOCK])]) -> io::Result<()> {
        blocks.iter().try_for_each(|(block, bytes)| self.0.write_all_at(bytes, block * BLOCK as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_free_once_it_is_unlocked_and_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(directory.path()).unwrap();
        let open = || File::options().read(true).write(true).open(images.path(2)).unwrap();
        images.get(2).check(&mut FileMedium(open())).unwrap();
        let lock = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(images.check_free(2).unwrap_err().contains("in use"));
        drop(lock);
        open().write_all_at(&[7; BLOCK], 0).unwrap();
        assert!(images.check_free(2).unwrap_err().contains("block 0"));
        open().write_all_at(&[0; BLOCK], 0).unwrap();
        assert_eq!(images.check_free(2), Ok(()));
        assert!(!images.bad_path(BadDisk::Missing).exists());
    }
}
