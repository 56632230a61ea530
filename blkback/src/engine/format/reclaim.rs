// Not a core: does I/O or calls a hypervisor.

//! Frees the clusters at the end of an image's file that a process which was killed had reserved ([`super::ahead`]): those that no table
//! names, where the file has nothing but a hole.

use super::compressed::{COMPRESSED, extent};
use super::image_file::ImageFile;
use super::order::L2_OFFSET;
use super::refcounts;
use super::tables::each_entry;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// L2 tables that are read at most: of an image with more of them the clusters stay leaks.
const MOST_TABLES: usize = 16_384;
/// A file system's blocks, which are holes as a whole.
const BLOCK: u64 = 4096;

/// Frees what was reserved in the file of an image that is to be written, whose tables are known.
///
/// # Errors
/// The file cannot be read, written or synchronized.
pub(super) fn reclaim(file: &Arc<ImageFile>, cluster: u64) -> io::Result<()> {
    let length = file.length();
    let Some(last) =
        length.checked_sub(cluster).filter(|_| file.is_regular() && length.is_multiple_of(cluster))
    else {
        return Ok(());
    };
    let tables = file.with_order(|order| (order.l2_tables(), order.tables_end()));
    let Some((l2_tables, tables_end)) = tables else { return Ok(()) };
    // So does nearly no image that was closed, whose tables are not read then.
    if last < tables_end || !is_hole(file, last..length) || l2_tables.len() > MOST_TABLES {
        return Ok(());
    }
    let mut end = tables_end;
    for table in l2_tables {
        each_entry(file, table, cluster, |_, entry| {
            let (at, clusters) = match entry & COMPRESSED {
                0 => (entry & L2_OFFSET, 1),
                // What is compressed may begin anywhere in a cluster, and is shorter than two.
                _ => (extent(entry, cluster.trailing_zeros()).0, 2),
            };
            if at != 0 {
                end = end.max(at + clusters * cluster);
            }
        })?;
    }
    let end = end.next_multiple_of(cluster);
    if end >= length || !is_hole(file, end..length) {
        return Ok(());
    }
    free(file, end / cluster..length / cluster)?;
    file.shorten(end)?;
    tracing::info!(path = %file.path().display(), bytes = length - end, "freed what a killed process had reserved");
    Ok(())
}

/// Whether a part of the file is a hole, as far as blocks of file systems can be.
fn is_hole(file: &ImageFile, part: Range<u64>) -> bool {
    let start = part.start.next_multiple_of(BLOCK).min(part.end);
    file.hole(start, part.end - start) == part.end - start
}

/// Enters that clusters whose refcounts are 1 are free.
fn free(file: &Arc<ImageFile>, clusters: Range<u64>) -> io::Result<()> {
    let Some((layout, blocks)) = file.with_order(|order| (order.layout(), order.refcount_blocks())) else {
        return Ok(());
    };
    // Tables on the medium may be older than those that were read, and name what is freed.
    file.sync_all_written()?;
    for (block, first) in blocks {
        let start = clusters.start.max(first);
        let end = clusters.end.min(first + layout.per_block());
        if start >= end {
            continue;
        }
        let mut buffer = file.buffer(layout.cluster as usize)?;
        let bytes = buffer.as_mut().into_slice();
        file.read_into(bytes, block)?;
        for index in start - first..end - first {
            if refcounts::is_one(bytes, index, layout.bits) {
                refcounts::set_zero(bytes, index, layout.bits);
            }
        }
        file.write_changed(bytes, block)?;
    }
    Ok(())
}
