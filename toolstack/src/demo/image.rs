//! A disk image with a real filesystem, and a file in it whose place on the disk is known.
//!
//! The file is filled before the filesystem is made from it, so that it has all its blocks. A guest overwrites these
//! blocks through the ring, as the filesystem's own driver would; afterwards the file must be what the guest wrote
//! and the filesystem as sound as before.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::pattern::BLOCK;
use super::words::Run;
use crate::error::{Error, Result};
use crate::machine::process::program;

/// Bytes of an image beyond its file: the filesystem's own, and room to spare.
const OVERHEAD: u64 = 24 << 20;
const PACKAGE: &str = "e2fsprogs";

/// The programs that make and check filesystems.
#[derive(Debug)]
pub struct Tools {
    mkfs: PathBuf,
    debugfs: PathBuf,
    fsck: PathBuf,
}

impl Tools {
    /// Finds them.
    ///
    /// # Errors
    /// [`Error::NotInstalled`] names the package.
    pub fn find() -> Result<Tools> {
        let mkfs = program("mkfs.ext4", PACKAGE)?;
        Ok(Tools { mkfs, debugfs: program("debugfs", PACKAGE)?, fsck: program("e2fsck", PACKAGE)? })
    }
}

/// An image, and where its file's blocks are.
#[derive(Debug)]
pub struct Image {
    /// The image.
    pub path: PathBuf,
    /// The file's blocks, in its order.
    pub runs: Vec<Run>,
}

impl Image {
    /// Makes an ext4 filesystem at `path` with a file `data` of so many bytes, a multiple of 4096.
    ///
    /// # Errors
    /// The programs', in their words.
    pub fn make(tools: &Tools, path: &Path, bytes: u64) -> Result<Image> {
        let source = path.with_extension("source");
        fs::create_dir(&source).map_err(|e| Error::file(&source, "making a directory", e))?;
        let data = source.join("data");
        fill(&data, bytes).map_err(|e| Error::file(&data, "writing", e))?;
        let image = File::create(path).and_then(|f| f.set_len(bytes + OVERHEAD));
        image.map_err(|e| Error::file(path, "making the image", e))?;
        let mut mkfs = Command::new(&tools.mkfs);
        mkfs.args(["-q", "-F", "-b", "4096", "-m", "0", "-d"]).arg(&source).arg(path);
        output(&mut mkfs)?;
        fs::remove_dir_all(&source).map_err(|e| Error::file(&source, "removing", e))?;
        let listing = output(Command::new(&tools.debugfs).args(["-R", "blocks /data"]).arg(path))?;
        let runs = runs(&listing)
            .ok_or_else(|| Error::Other(format!("debugfs says {listing:?}, expected blocks")))?;
        let blocks: u64 = runs.iter().map(|run| run.count).sum();
        if blocks != bytes / BLOCK as u64 {
            return Err(Error::Other(format!(
                "the file has {blocks} blocks, expected {}",
                bytes / BLOCK as u64
            )));
        }
        Ok(Image { path: path.to_owned(), runs })
    }

    /// SHA-256 of the file as it is in the filesystem now, in hexadecimal.
    ///
    /// # Errors
    /// The programs'.
    pub fn sha256(&self, tools: &Tools) -> Result<String> {
        let copy = self.path.with_extension("copy");
        let request = format!("dump /data {}", copy.display());
        output(Command::new(&tools.debugfs).args(["-R", &request]).arg(&self.path))?;
        let failed = |e| Error::file(&copy, "reading", e);
        let mut file = File::open(&copy).map_err(failed)?;
        let (mut hash, mut bytes) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut bytes).map_err(failed)? {
                0 => break,
                len => hash.update(&bytes[..len]),
            }
        }
        fs::remove_file(&copy).map_err(failed)?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What e2fsck has to complain of; `None` when the filesystem is clean.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn complaint(&self, tools: &Tools) -> Result<Option<String>> {
        let mut fsck = Command::new(&tools.fsck);
        fsck.args(["-f", "-n"]).arg(&self.path).stdin(Stdio::null());
        let run = fsck.output().map_err(|e| Error::io("running e2fsck", e))?;
        Ok((!run.status.success()).then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned()))
    }
}

/// Bytes that are not zero, or mkfs would leave holes.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![0xe5; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(chunk.len() as u64);
        file.write_all(&chunk[..len as usize])?;
        left -= len;
    }
    Ok(())
}

/// Block numbers, in runs; `None` where something else stands there, or a hole.
fn runs(listing: &str) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for number in listing.split_ascii_whitespace() {
        let number = number.parse().ok().filter(|n| *n > 0)?;
        match runs.last_mut() {
            Some(run) if run.first + run.count == number => run.count += 1,
            _ => runs.push(Run { first: number, count: 1 }),
        }
    }
    Some(runs)
}

/// What a program prints, if it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let run = command.stdin(Stdio::null()).output().map_err(|e| Error::io(format!("running {name}"), e))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        return Err(Error::Other(format!("{name} failed: {}", said.lines().last().unwrap_or_default())));
    }
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_one_run() {
        let run = |first, count| Run { first, count };
        assert_eq!(runs("7 8 9 20 21 5 \n"), Some(vec![run(7, 3), run(20, 2), run(5, 1)]));
        assert_eq!(runs("7 0 9"), None);
        assert_eq!(runs("File not found"), None);
    }
}
