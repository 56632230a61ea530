//! A disk image with an ext4 filesystem, and a file in it whose extents on the disk are known.
//!
//! The file is filled before the filesystem is made from it, so that all its blocks are allocated. A guest overwrites
//! these blocks through the ring, as a filesystem driver would; afterwards the file must have the data that the guest
//! wrote, and the filesystem must still be clean.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::pattern::BLOCK;
use super::protocol::Extent;
use crate::error::{Error, Result};
use crate::machine::process::find_program;

/// Bytes of an image in addition to its file: more than the filesystem's metadata needs.
const OVERHEAD: u64 = 24 << 20;
const PACKAGE: &str = "e2fsprogs";

/// The programs that create and check filesystems.
#[derive(Debug)]
pub struct Tools {
    mkfs: PathBuf,
    debugfs: PathBuf,
    fsck: PathBuf,
}

impl Tools {
    /// Finds the programs.
    ///
    /// # Errors
    /// [`Error::NotInstalled`] names the missing program's package.
    pub fn find() -> Result<Tools> {
        let mkfs = find_program("mkfs.ext4", PACKAGE)?;
        Ok(Tools { mkfs, debugfs: find_program("debugfs", PACKAGE)?, fsck: find_program("e2fsck", PACKAGE)? })
    }
}

/// An image, and the extents of its file.
#[derive(Debug)]
pub struct Image {
    /// The image's path.
    pub path: PathBuf,
    /// The extents of the file, in file order.
    pub extents: Vec<Extent>,
}

impl Image {
    /// Creates an ext4 filesystem at `path` with a file `data` of `bytes` bytes, a multiple of 4096.
    ///
    /// # Errors
    /// A program or a file operation fails.
    pub fn make(tools: &Tools, path: &Path, bytes: u64) -> Result<Image> {
        let source = path.with_extension("source");
        fs::create_dir(&source).map_err(|e| Error::file(&source, "making the directory", e))?;
        let data = source.join("data");
        fill(&data, bytes).map_err(|e| Error::file(&data, "writing", e))?;
        let image = File::create(path).and_then(|f| f.set_len(bytes + OVERHEAD));
        image.map_err(|e| Error::file(path, "making the image", e))?;
        let mut mkfs = Command::new(&tools.mkfs);
        mkfs.args(["-q", "-F", "-b", "4096", "-m", "0", "-d"]).arg(&source).arg(path);
        output(&mut mkfs)?;
        fs::remove_dir_all(&source).map_err(|e| Error::file(&source, "removing", e))?;
        let listing = output(Command::new(&tools.debugfs).args(["-R", "blocks /data"]).arg(path))?;
        let extents = parse_extents(&listing)
            .ok_or_else(|| Error::Other(format!("debugfs printed {listing:?}, expected block numbers")))?;
        let blocks: u64 = extents.iter().map(|extent| extent.count).sum();
        if blocks != bytes / BLOCK as u64 {
            return Err(Error::Other(format!(
                "the file has {blocks} blocks, expected {}",
                bytes / BLOCK as u64
            )));
        }
        Ok(Image { path: path.to_owned(), extents })
    }

    /// Computes the SHA-256 of the file as read from the filesystem, in hexadecimal.
    ///
    /// # Errors
    /// A program or a file operation fails.
    pub fn sha256(&self, tools: &Tools) -> Result<String> {
        let copy = self.path.with_extension("copy");
        let request = format!("dump /data {}", copy.display());
        output(Command::new(&tools.debugfs).args(["-R", &request]).arg(&self.path))?;
        let failed = |e| Error::file(&copy, "reading", e);
        let mut file = File::open(&copy).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut bytes = vec![0; 1 << 20];
        loop {
            match file.read(&mut bytes).map_err(failed)? {
                0 => break,
                len => hash.update(&bytes[..len]),
            }
        }
        fs::remove_file(&copy).map_err(failed)?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns the output of e2fsck; `None` if the filesystem is clean.
    ///
    /// # Errors
    /// [`Error::Io`] if e2fsck cannot be run.
    pub fn fsck_errors(&self, tools: &Tools) -> Result<Option<String>> {
        let mut fsck = Command::new(&tools.fsck);
        fsck.args(["-f", "-n"]).arg(&self.path).stdin(Stdio::null());
        let run = fsck.output().map_err(|e| Error::io("running e2fsck", e))?;
        Ok((!run.status.success()).then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned()))
    }
}

/// Fills a file with bytes other than zero, for which mkfs would leave holes.
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

/// Parses a list of block numbers into extents; `None` if an entry is not a number, or is 0, which is a hole.
fn parse_extents(listing: &str) -> Option<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    for number in listing.split_ascii_whitespace() {
        let number = number.parse().ok().filter(|n| *n > 0)?;
        match extents.last_mut() {
            Some(extent) if extent.first + extent.count == number => extent.count += 1,
            _ => extents.push(Extent { first: number, count: 1 }),
        }
    }
    Some(extents)
}

/// Runs a program and returns its output; an error if it fails.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let run = command.stdin(Stdio::null()).output().map_err(|e| Error::io(format!("running {name}"), e))?;
    if !run.status.success() {
        let stderr = String::from_utf8_lossy(&run.stderr);
        return Err(Error::Other(format!("{name} failed: {}", stderr.lines().last().unwrap_or_default())));
    }
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_block_numbers_become_one_extent() {
        let extent = |first, count| Extent { first, count };
        assert_eq!(parse_extents("7 8 9 20 21 5 \n"), Some(vec![extent(7, 3), extent(20, 2), extent(5, 1)]));
        assert_eq!(parse_extents("7 0 9"), None);
        assert_eq!(parse_extents("File not found"), None);
    }
}
