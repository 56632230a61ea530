//! Opens the disk that a [`Spec`] describes.

use super::format::{OpenChain, Qcow2Disk};
use super::spec::Source;
use super::{Access, BaseCache, DiscardLimits, Disk, DiskInfo, FileDisk, NullDisk, OpenError, RamDisk, Spec};
use std::sync::Arc;

/// Opens a disk.
///
/// # Errors
/// [`OpenError`] names the key, the file, what was found and what was expected.
pub fn open(spec: &Spec) -> Result<Arc<dyn Disk>, OpenError> {
    open_with(spec, &BaseCache::default())
}

/// As [`open`], with a cache of the files that are below a guest's own image.
///
/// # Errors
/// As [`open`].
pub fn open_with(spec: &Spec, cache: &BaseCache) -> Result<Arc<dyn Disk>, OpenError> {
    let described = |bytes: u64| DiskInfo {
        read_only: spec.mode.read_only(),
        cdrom: spec.cdrom,
        ..DiskInfo::new(bytes / 512)
    };
    let &Spec { mode, direct, user, own_loop, cdrom, discard, .. } = spec;
    Ok(match &spec.source {
        Source::Raw(path) => {
            let disk = FileDisk::open_as(path, Access { mode, direct, user, own_loop, server: None })?;
            Arc::new(disk.with_cdrom(cdrom).with_discard(discard))
        }
        Source::Qcow2(path) => {
            let access = Access { mode, direct, user, own_loop, server: None };
            let disk = Qcow2Disk::with_cache(OpenChain::open(path, access, &|_, _| Ok(()))?, cache)?;
            Arc::new(disk.with_cdrom(cdrom).with_discard(discard))
        }
        Source::Null(bytes) => Arc::new(NullDisk::new(described(*bytes))),
        Source::Empty => Arc::new(NullDisk::new(DiskInfo { flush: false, ..described(0) })),
        Source::Ram(bytes) => {
            let is_offered = discard && !mode.read_only();
            let discard = is_offered.then_some(DiscardLimits { granularity: 512, alignment: 0 });
            let info = DiskInfo { discard, ..described(*bytes) };
            Arc::new(RamDisk::new(info).map_err(OpenError::Ram)?)
        }
    })
}
