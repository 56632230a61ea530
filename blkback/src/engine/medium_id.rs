// Not a core: does I/O or calls a hypervisor.

//! What the operations of several disks have in common: the medium that serves them.

use super::claims;
use nix::sys::stat::{major, minor};
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Layers of block devices that are looked through.
const LAYERS: usize = 8;

/// A medium, of which each serves its operations whatever the others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MediumId {
    device: u64,
    inode: u64,
}

impl MediumId {
    /// Of a disk that is no file: two numbers that no other medium has.
    pub const fn new(device: u64, inode: u64) -> MediumId {
        MediumId { device, inode }
    }

    /// Of an image: the block device that it is, or is on; of a partition its disk, and of a logical volume the disk below it, if there
    /// is one. A file on no block device, as on tmpfs or a file server, is a medium by itself. `None` if the file cannot be asked.
    pub fn of_file(file: &File) -> Option<MediumId> {
        let meta = file.metadata().ok()?;
        let (major, minor) = match meta.file_type().is_block_device() {
            true => claims::number(&meta),
            false => (major(meta.dev()), minor(meta.dev())),
        };
        if major == 0 {
            return Some(MediumId { device: meta.dev(), inode: meta.ino() });
        }
        let name = |(major, minor)| format!("/sys/dev/block/{major}:{minor}");
        let below = |device: &(u64, u64)| lower(Path::new(&name(*device)));
        let (major, minor) = std::iter::successors(Some((major, minor)), below).take(LAYERS).last()?;
        Some(MediumId { device: nix::sys::stat::makedev(major, minor), inode: 0 })
    }
}

/// The block device that one with this directory in sysfs is a part of, or lies on; `None` if it is a disk, or lies on several.
fn lower(sysfs: &Path) -> Option<(u64, u64)> {
    let number = |dev: &Path| {
        let text = std::fs::read_to_string(dev).ok()?;
        let (major, minor) = text.trim_end().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    if sysfs.join("partition").exists() {
        return number(&sysfs.join("../dev"));
    }
    let mut slaves = std::fs::read_dir(sysfs.join("slaves")).ok()?.flatten();
    let only = slaves.next().filter(|_| slaves.next().is_none())?;
    number(&only.path().join("dev"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn partition_lies_on_its_disk_and_a_volume_on_what_it_has_alone() {
        let sysfs = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = sysfs.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("sda/dev", "8:0\n");
        make("sda/sda1/partition", "1\n");
        make("sda/sda1/dev", "8:1\n");
        make("dm-0/slaves/sda1/dev", "8:1\n");
        make("md0/slaves/sda1/dev", "8:1\n");
        make("md0/slaves/sdb1/dev", "8:17\n");
        let lower = |name: &str| lower(&sysfs.path().join(name));
        assert_eq!([lower("sda/sda1"), lower("dm-0")], [Some((8, 0)), Some((8, 1))]);
        assert_eq!([lower("sda"), lower("md0")], [None, None]);
    }

    #[test]
    fn files_of_a_tmpfs_share_no_medium() {
        let open = || tempfile::tempfile_in("/dev/shm").unwrap();
        let (one, other) = (open(), open());
        let id = |file| MediumId::of_file(file).unwrap();
        assert_ne!(id(&one), id(&other));
        assert_eq!(id(&one), id(&one.try_clone().unwrap()));
    }
}
