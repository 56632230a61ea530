//! What refers to the host clusters of a qcow2 image: its header, its tables, and the entries of these. Every reference and every entry
//! that cannot be right is handed to a [`Visitor`]; an image whose tables lie takes no more memory than another.
//!
//! Source: QEMU's docs/interop/qcow2.txt, "Cluster mapping".

use std::fs::File;
use std::io;

use super::read_padded;
use super::refcounts::Refcounts;
use crate::image::Geometry;

/// Of L1 and L2 entries: the refcount of what is named is exactly one.
const COPIED: u64 = 1 << 63;
/// Of L2 entries: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Of L2 entries that are not compressed, from version 3 on: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// Of L1 and L2 entries: where what they name is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Entries of L1 that are read at a time.
const L1_CHUNK: usize = 8 << 10;

/// What is told of an image's references.
pub(super) trait Visitor {
    /// Something refers to all clusters from the one of `first` to the one of `last`, offsets in the file.
    fn refers(&mut self, first: u64, last: u64);
    /// `what` names the cluster at `offset`, and says by its flag whether the refcount there is one.
    fn says_copied(&mut self, what: &Entry, offset: u64, copied: bool) -> io::Result<()>;
    /// The entries of another table of the guest's clusters follow.
    fn table(&mut self);
    /// A cluster of the guest's is in the image at `offset`.
    fn allocated(&mut self, offset: u64, compressed: bool);
    /// An entry that cannot be right.
    fn wrong(&mut self, what: &Entry, why: &str);
    /// So many of the entries of L1 are done.
    fn progress(&mut self, done: u64);
}

/// An entry of a table.
pub(super) struct Entry {
    pub(super) table: &'static str,
    /// Where the table is in the file.
    pub(super) at: u64,
    pub(super) index: u64,
    pub(super) value: u64,
}

/// Walks an image.
pub(super) struct Walk<'a> {
    file: &'a File,
    geometry: &'a Geometry,
}

impl<'a> Walk<'a> {
    pub(super) fn new(file: &'a File, geometry: &'a Geometry) -> Walk<'a> {
        Walk { file, geometry }
    }

    /// Visits every reference.
    pub(super) fn visit(&self, visitor: &mut impl Visitor) -> io::Result<()> {
        let geometry = self.geometry;
        visitor.refers(0, 0);
        self.table(visitor, geometry.l1_offset, u64::from(geometry.l1_entries) * 8);
        let refcount_table = u64::from(geometry.refcount_table_clusters) * geometry.cluster_size();
        self.table(visitor, geometry.refcount_table_offset, refcount_table);
        self.refcount_blocks(visitor)?;
        self.l1(visitor)
    }

    fn table(&self, visitor: &mut impl Visitor, offset: u64, bytes: u64) {
        if bytes > 0 {
            visitor.refers(offset, offset + bytes - 1);
        }
    }

    fn refcount_blocks(&self, visitor: &mut impl Visitor) -> io::Result<()> {
        let refcounts = Refcounts::new(self.file, self.geometry);
        let at = self.geometry.refcount_table_offset;
        for index in 0..Refcounts::blocks(self.geometry) {
            let entry = |value| Entry { table: "refcount table", at, index, value };
            match refcounts.block_offset(index)? {
                Ok(0) => {}
                Ok(offset) => visitor.refers(offset, offset),
                Err(value) => visitor.wrong(&entry(value), "no cluster of the image is there"),
            }
        }
        Ok(())
    }

    fn l1(&self, visitor: &mut impl Visitor) -> io::Result<()> {
        let entries = u64::from(self.geometry.l1_entries);
        let mut bytes = vec![0; L1_CHUNK * 8];
        for start in (0..entries).step_by(L1_CHUNK) {
            let count = (entries - start).min(L1_CHUNK as u64) as usize;
            read_padded(self.file, self.geometry.l1_offset + start * 8, &mut bytes[..count * 8])?;
            for (index, value) in (start..).zip(numbers(&bytes[..count * 8])) {
                self.l1_entry(visitor, index, value)?;
                visitor.progress(index + 1);
            }
        }
        Ok(())
    }

    fn l1_entry(&self, visitor: &mut impl Visitor, index: u64, value: u64) -> io::Result<()> {
        let entry = Entry { table: "L1", at: self.geometry.l1_offset, index, value };
        if value & !(COPIED | OFFSET) != 0 {
            visitor.wrong(&entry, "reserved bits are set");
        }
        let offset = value & OFFSET;
        if offset == 0 || !self.is_cluster(visitor, &entry, offset) {
            return Ok(());
        }
        visitor.refers(offset, offset);
        visitor.says_copied(&entry, offset, value & COPIED != 0)?;
        visitor.table();
        let mut table = vec![0; self.geometry.cluster_size() as usize];
        read_padded(self.file, offset, &mut table)?;
        for (index, value) in (0..).zip(numbers(&table)) {
            let entry = Entry { table: "L2", at: offset, index, value };
            if value & COMPRESSED != 0 {
                self.compressed(visitor, &entry);
            } else if value != 0 {
                self.standard(visitor, &entry)?;
            }
        }
        Ok(())
    }

    fn standard(&self, visitor: &mut impl Visitor, entry: &Entry) -> io::Result<()> {
        let flags = if self.geometry.version >= 3 { COPIED | ZERO } else { COPIED };
        if entry.value & !(flags | OFFSET) != 0 {
            visitor.wrong(entry, "reserved bits are set");
        }
        let offset = entry.value & OFFSET;
        if offset == 0 || !self.is_cluster(visitor, entry, offset) {
            return Ok(());
        }
        visitor.refers(offset, offset);
        visitor.allocated(offset, false);
        visitor.says_copied(entry, offset, entry.value & COPIED != 0)
    }

    fn compressed(&self, visitor: &mut impl Visitor, entry: &Entry) {
        if entry.value & COPIED != 0 {
            visitor.wrong(entry, "a compressed cluster is said to have a refcount of one");
        }
        // Sectors of 512 bytes beside the one in which it begins, above the bits of the offset.
        let offset_bits = 62 - (self.geometry.cluster_bits - 8);
        let offset = entry.value & ((1 << offset_bits) - 1);
        let more_sectors = (entry.value & !(COPIED | COMPRESSED)) >> offset_bits;
        let end = (offset & !511) + (more_sectors + 1) * 512;
        let file_end = self.geometry.clusters() * self.geometry.cluster_size();
        if offset >= file_end || end > file_end {
            return visitor.wrong(entry, "it ends beyond the file");
        }
        visitor.refers(offset, end - 1);
        visitor.allocated(offset, true);
    }

    /// Whether an offset is that of a cluster in the file.
    fn is_cluster(&self, visitor: &mut impl Visitor, entry: &Entry, offset: u64) -> bool {
        let is_aligned = offset.is_multiple_of(self.geometry.cluster_size());
        let is_inside = offset < self.geometry.file_bytes;
        if !is_aligned {
            visitor.wrong(entry, "its offset is no multiple of the cluster size");
        } else if !is_inside {
            visitor.wrong(entry, "it is beyond the file's end");
        }
        is_aligned && is_inside
    }
}

/// Big-endian numbers of 8 bytes.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|chunk| u64::from_be_bytes(*chunk))
}
