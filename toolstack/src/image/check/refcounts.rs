//! The refcounts that a qcow2 image records: a table of blocks, of which a bounded number is in memory.
//!
//! Source: QEMU's docs/interop/qcow2.txt, "Host cluster management".

use std::fs::File;
use std::io;

use super::read_padded;
use crate::image::Geometry;

/// Bytes of blocks in memory.
const CACHE_BYTES: u64 = 16 << 20;

/// Bits 9 to 63 of an entry of the table: where the block is. The others are reserved.
const BLOCK_OFFSET: u64 = !0x1ff;

/// A block in memory.
struct Block {
    index: u64,
    bytes: Vec<u8>,
}

/// Reads refcounts.
pub(super) struct Refcounts<'a> {
    file: &'a File,
    geometry: &'a Geometry,
    /// The block `index` is in the place `index` modulo their number.
    cache: Vec<Option<Block>>,
}

impl<'a> Refcounts<'a> {
    pub(super) fn new(file: &'a File, geometry: &'a Geometry) -> Refcounts<'a> {
        let places = (CACHE_BYTES / geometry.cluster_size()).max(1);
        Refcounts { file, geometry, cache: (0..places).map(|_| None).collect() }
    }

    /// How many clusters a block counts.
    pub(super) fn clusters_of_block(geometry: &Geometry) -> u64 {
        (geometry.cluster_size() * 8) >> geometry.refcount_order
    }

    /// How many entries the table has.
    pub(super) fn blocks(geometry: &Geometry) -> u64 {
        u64::from(geometry.refcount_table_clusters) * geometry.cluster_size() / 8
    }

    /// Where a block is; 0 if there is none. An entry that cannot be right is shown as `Err`.
    pub(super) fn block_offset(&self, index: u64) -> io::Result<Result<u64, u64>> {
        let mut entry = [0; 8];
        read_padded(self.file, self.geometry.refcount_table_offset + index * 8, &mut entry)?;
        let entry = u64::from_be_bytes(entry);
        let offset = entry & BLOCK_OFFSET;
        let is_valid = entry == offset
            && offset.is_multiple_of(self.geometry.cluster_size())
            && offset < self.geometry.file_bytes;
        Ok(if is_valid { Ok(offset) } else { Err(entry) })
    }

    /// The recorded refcount of a host cluster; 0 where no block, or none that can be read, counts it.
    pub(super) fn get(&mut self, cluster: u64) -> io::Result<u64> {
        let of_block = Self::clusters_of_block(self.geometry);
        let index = cluster / of_block;
        if index >= Self::blocks(self.geometry) {
            return Ok(0);
        }
        let place = (index % self.cache.len() as u64) as usize;
        if self.cache[place].as_ref().is_none_or(|block| block.index != index) {
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            if let Ok(offset @ 1..) = self.block_offset(index)? {
                read_padded(self.file, offset, &mut bytes)?;
            }
            self.cache[place] = Some(Block { index, bytes });
        }
        let block = self.cache[place].as_ref().map_or(&[][..], |block| &block.bytes);
        Ok(entry(block, cluster % of_block, self.geometry.refcount_order))
    }
}

/// The refcount of a number in a block, each `1 << order` bits wide: big-endian, from the lowest bit within a byte.
fn entry(block: &[u8], number: u64, order: u32) -> u64 {
    let bits = 1u64 << order;
    let first = (number * bits / 8) as usize;
    match bits {
        1 | 2 | 4 => u64::from(block[first] >> (number * bits % 8)) & ((1 << bits) - 1),
        _ => block[first..first + (bits / 8) as usize]
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcount_of_any_width_is_read() {
        let block = [0b1010_0110, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 0, 0, 0, 0, 0, 1];
        let bits = |order: u32| (0..8 >> order).map(|n| entry(&block, n, order)).collect::<Vec<_>>();
        assert_eq!(bits(0), [0, 1, 1, 0, 0, 1, 0, 1]);
        assert_eq!(bits(1), [2, 1, 2, 2]);
        assert_eq!(bits(2), [6, 10]);
        assert_eq!((entry(&block, 2, 3), entry(&block, 1, 4)), (0x34, 0x3456));
        assert_eq!((entry(&block, 1, 5), entry(&block, 1, 6)), (0x789a_bcde, 0xf000_0000_0000_0001));
    }
}
