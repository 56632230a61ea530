//! Gives a qcow2 image at rest another size. What is beyond the old size reads as zeroes, whatever the backing file has there, and whatever was
//! left there when the image was made smaller.

use std::io;
use std::os::unix::fs::FileExt;

use blkback::engine::format::{Format, OpenLayer};
use imago::file::File;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping};

/// Why an image of version 2 does not grow over what its backing file has.
const NO_ZEROES: &str = "found version 2, expected 3 (by qemu-img amend -o compat=1.1), whose clusters may hide those of a longer backing file";

/// Gives the first image of a chain another size in bytes; behind it are its backing file, that one's, and so on. It is of version
/// 2 or 3.
///
/// # Errors
/// The chain cannot be read, or the image not written. It has its old size then.
pub fn resize(chain: &[OpenLayer], version: u32, bytes: u64) -> io::Result<()> {
    let (image, backing) = chain.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let backing = open_chain(backing)?;
    let backing_bytes = backing.as_ref().map_or(0, FormatAccess::size);
    let mut opened = open(image, backing, true)?;
    let old = opened.size();
    if bytes <= old {
        opened.resize_shrink(bytes)?;
    } else {
        let hides = backing_bytes > old;
        if hides && version < 3 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, NO_ZEROES));
        }
        clear_behind(&opened, image.image.file(), old)?;
        opened.resize_grow(bytes, if hides { PreallocateMode::Zero } else { PreallocateMode::None })?;
    }
    opened.flush()?;
    opened.sync()
}

/// Opens the first image of a chain for reading; `None` of an empty one.
fn open_chain(chain: &[OpenLayer]) -> io::Result<Option<FormatAccess<File>>> {
    chain.iter().rev().try_fold(None, |backing, layer| open(layer, backing, false).map(Some))
}

fn open(
    layer: &OpenLayer,
    backing: Option<FormatAccess<File>>,
    writable: bool,
) -> io::Result<FormatAccess<File>> {
    let file = File::try_from(layer.image.file().try_clone()?)?;
    Ok(match layer.format {
        Format::Raw => FormatAccess::new(Raw::open_image(file, writable)?),
        Format::Qcow2 => {
            let builder = Qcow2::<File>::builder(file).backing(backing).write(writable);
            FormatAccess::new(builder.open(DenyImplicitOpenGate::default())?)
        }
    })
}

/// Clears what is left behind the image's end in the last cluster, which becomes a part of the disk.
fn clear_behind(image: &FormatAccess<File>, file: &std::fs::File, end: u64) -> io::Result<()> {
    let Some(last) = end.checked_sub(1) else { return Ok(()) };
    // The mapping reaches to the cluster's end, or beyond, where the disk's end does not cut it.
    if let (ShallowMapping::Raw { offset, .. }, _) = image.get_shallow_mapping(last, 1)? {
        let cluster = image.inner().zero_granularity().unwrap_or(1);
        let behind = end.next_multiple_of(cluster) - end;
        file.write_all_at(&vec![0; behind as usize], offset + 1)?;
    }
    Ok(())
}
