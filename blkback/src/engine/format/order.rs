//! In which order the tables of a qcow2 image reach the medium, so that a power cut at any moment leaves each sector old or new, and
//! refcounts too high at most:
//!
//! * an L2 table, after the data and the refcounts of what it names;
//! * the L1 table, the refcount table and the header, after all that was written before, and after the refcounts of the tables that they name
//!   anew: `imago` has these in memory only, by then;
//! * where clusters were freed, refcounts after the tables that no longer name them, and both before one of those clusters is used again.

use super::ahead::Layout;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What was written since the medium was last synchronized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unsynced {
    data: bool,
    refcounts: bool,
    /// L2 tables and all that lead to them.
    tables: bool,
}

/// What a write is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    RefcountBlock,
    /// A whole cluster that is no refcount block.
    Table,
    /// The L1 table, the refcount table, the header, and what cannot be told.
    Root,
}

/// Where an image's tables are, and what of them is not on the medium yet.
#[derive(Debug)]
pub(super) struct Order {
    cluster: u64,
    refcount_bits: u64,
    /// The L1 table and the refcount table, in bytes of the file.
    l1: Range<u64>,
    refcount_table: Range<u64>,
    /// By the offsets of their clusters, the numbers of their entries in the refcount table.
    refcount_blocks: HashMap<u64, u64>,
    /// Offsets of clusters.
    l2_tables: HashSet<u64>,
    unsynced: Unsynced,
    /// Clusters were freed that tables on the medium may still name.
    freed: bool,
}

impl Order {
    pub(super) fn new(
        cluster: u64,
        refcount_bits: u64,
        l1: Range<u64>,
        refcount_table: Range<u64>,
        l2_tables: HashSet<u64>,
        refcount_blocks: HashMap<u64, u64>,
    ) -> Order {
        let unsynced = Unsynced::default();
        Order {
            cluster,
            refcount_bits,
            l1,
            refcount_table,
            refcount_blocks,
            l2_tables,
            unsynced,
            freed: false,
        }
    }

    /// What a write to a part of the file is to.
    pub(super) fn kind(&self, range: &Range<u64>) -> Kind {
        let touches = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        let is_cluster = range.start.is_multiple_of(self.cluster) && range.end - range.start == self.cluster;
        if range.start < self.cluster || touches(&self.l1) || touches(&self.refcount_table) || !is_cluster {
            Kind::Root
        } else if self.refcount_blocks.contains_key(&range.start) {
            Kind::RefcountBlock
        } else {
            Kind::Table
        }
    }

    /// Whether the medium is to be synchronized before this part of the file is written as a table.
    pub(super) fn needs_sync(&self, range: &Range<u64>) -> bool {
        let Unsynced { data, refcounts, tables } = self.unsynced;
        match self.kind(range) {
            Kind::RefcountBlock => self.freed && tables,
            // Tables among each other are in no order: a new one is named by the L1 table only later.
            Kind::Table => data || refcounts,
            Kind::Root => data || refcounts || tables,
        }
    }

    /// A part of the file was written as a table, with these bytes.
    pub(super) fn wrote(&mut self, range: &Range<u64>, bytes: &[u8]) {
        let kind = self.kind(range);
        match kind {
            Kind::RefcountBlock => self.unsynced.refcounts = true,
            Kind::Table | Kind::Root => self.unsynced.tables = true,
        }
        if range.start == 0 {
            self.read_header(bytes);
        }
        let blocks = self.entries(&self.refcount_table, range, bytes, !511);
        let tables = self.entries(&self.l1, range, bytes, L2_OFFSET);
        self.refcount_blocks.extend(blocks.into_iter().map(|(number, at)| (at, number)));
        self.l2_tables.extend(tables.into_iter().map(|(_, at)| at));
    }

    /// The entries of a table with their numbers, as far as a part of the file has them, without those that name nothing.
    fn entries(&self, table: &Range<u64>, range: &Range<u64>, bytes: &[u8], mask: u64) -> Vec<(u64, u64)> {
        let (start, end) = (range.start.max(table.start), range.end.min(table.end));
        let part =
            (start < end).then(|| &bytes[(start - range.start) as usize..(end - range.start) as usize]);
        let words = part.unwrap_or(&[]).chunks_exact(8);
        let first = start.saturating_sub(table.start) / 8;
        (first..)
            .zip(words)
            .map(|(number, word)| (number, u64::from_be_bytes(word.try_into().unwrap_or_default()) & mask))
            .filter(|(_, at)| *at != 0)
            .collect()
    }

    /// The clusters of tables that a part of the file, which is to be written as a table, names and the file did not name before.
    pub(super) fn named_anew(&self, range: &Range<u64>, bytes: &[u8]) -> Vec<u64> {
        let blocks = self.entries(&self.refcount_table, range, bytes, !511).into_iter().map(|(_, at)| at);
        let mut named: Vec<_> = blocks.filter(|at| !self.refcount_blocks.contains_key(at)).collect();
        let tables = self.entries(&self.l1, range, bytes, L2_OFFSET).into_iter().map(|(_, at)| at);
        named.extend(tables.filter(|at| !self.l2_tables.contains(at)));
        let header = if range.start == 0 { self.roots(bytes) } else { None };
        if let Some((l1, _)) = header.filter(|(l1, _)| l1.start != self.l1.start) {
            named.extend((l1.start..l1.end).step_by(self.cluster as usize));
        }
        named
    }

    /// Where the refcount of a cluster is: the byte of the file where the refcount table names its block, its number in the block, and how
    /// many bits it has. Refcount tables that are too short have none.
    pub(super) fn counter(&self, cluster: u64) -> Option<(u64, u64, u64)> {
        let per_block = self.layout().per_block();
        let number = cluster / self.cluster;
        let entry = self.refcount_table.start + number / per_block * 8;
        (entry < self.refcount_table.end).then_some((entry, number % per_block, self.refcount_bits))
    }

    /// Where the L2 tables are.
    pub(super) fn l2_tables(&self) -> Vec<u64> {
        self.l2_tables.iter().copied().collect()
    }

    /// Where the refcount blocks are, each with the number of the first cluster whose refcount it has.
    pub(super) fn refcount_blocks(&self) -> Vec<(u64, u64)> {
        let per_block = self.layout().per_block();
        self.refcount_blocks.iter().map(|(at, number)| (*at, number * per_block)).collect()
    }

    /// The end of the last table.
    pub(super) fn tables_end(&self) -> u64 {
        let tables = self.l2_tables.iter().chain(self.refcount_blocks.keys()).map(|at| at + self.cluster);
        tables.chain([self.l1.end, self.refcount_table.end, self.cluster]).max().unwrap_or(0)
    }

    /// How refcounts lie in the blocks.
    pub(super) fn layout(&self) -> Layout {
        Layout { cluster: self.cluster, bits: self.refcount_bits }
    }

    /// The number of the first cluster whose refcount is in the block at this offset, if one is there.
    pub(super) fn first_of_block(&self, at: u64) -> Option<u64> {
        Some(self.refcount_blocks.get(&at)? * self.layout().per_block())
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        self.cluster
    }

    /// The header says where the two tables are, which may have moved: the clusters of the old ones are free.
    fn read_header(&mut self, bytes: &[u8]) {
        let Some((l1, refcount_table)) = self.roots(bytes) else { return };
        self.freed |= l1 != self.l1 || refcount_table != self.refcount_table;
        (self.l1, self.refcount_table) = (l1, refcount_table);
    }

    /// Where a header says that the L1 table and the refcount table are.
    fn roots(&self, bytes: &[u8]) -> Option<(Range<u64>, Range<u64>)> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (l1, table) = (long(40)?, long(48)?);
        let l1_end = l1 + u64::from(word(36)?) * 8;
        Some((l1..l1_end, table..table + u64::from(word(56)?) * self.cluster))
    }

    pub(super) fn wrote_data(&mut self) {
        self.unsynced.data = true;
    }

    pub(super) fn synced(&mut self) {
        self.unsynced = Unsynced::default();
    }

    /// Clusters were freed, or are about to be.
    pub(super) fn set_freed(&mut self, freed: bool) {
        self.freed = freed;
    }

    /// Whether the medium must have the tables before a cluster is allocated.
    pub(super) fn has_freed(&self) -> bool {
        self.freed
    }

    /// A cluster was allocated for data.
    pub(super) fn is_data(&mut self, cluster: u64) {
        self.refcount_blocks.remove(&cluster);
        self.l2_tables.remove(&cluster);
    }

    /// Whether a cluster is one of the image's tables, so that no data can be there.
    pub(super) fn is_table(&self, cluster: u64) -> bool {
        let inside = |table: &Range<u64>| cluster < table.end && table.start < cluster + self.cluster;
        cluster < self.cluster
            || inside(&self.l1)
            || inside(&self.refcount_table)
            || self.refcount_blocks.contains_key(&cluster)
            || self.l2_tables.contains(&cluster)
    }
}

/// The bits of an L1 entry that are the L2 table's offset.
pub(super) const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 65_536;

    fn order() -> Order {
        let at = |cluster: u64| cluster * CLUSTER;
        let (l1, refcount_table) = (at(3)..at(3) + 16, at(1)..at(2));
        Order::new(CLUSTER, 16, l1, refcount_table, HashSet::from([at(4)]), HashMap::from([(at(2), 0)]))
    }

    fn cluster(number: u64) -> Range<u64> {
        number * CLUSTER..(number + 1) * CLUSTER
    }

    #[test]
    fn table_waits_for_data_and_refcounts_and_the_l1_table_for_all() {
        let mut order = order();
        let zeroes = vec![0; CLUSTER as usize];
        let entry = 3 * CLUSTER..3 * CLUSTER + 8;
        assert!(!order.needs_sync(&cluster(4)) && !order.needs_sync(&entry));
        order.wrote_data();
        assert!(!order.needs_sync(&cluster(2)), "a refcount that is too high is no harm");
        assert!(order.needs_sync(&cluster(4)));
        order.wrote(&cluster(2), &zeroes);
        assert!(order.needs_sync(&cluster(4)));
        order.synced();
        order.wrote(&cluster(4), &zeroes);
        assert!(!order.needs_sync(&cluster(5)), "two L2 tables");
        assert!(!order.needs_sync(&cluster(2)), "the next allocation's refcounts");
        assert!(order.needs_sync(&entry));
        assert!(order.needs_sync(&(0..72)));
    }

    #[test]
    fn refcounts_of_what_was_freed_wait_for_the_tables() {
        let mut order = order();
        order.wrote(&cluster(4), &vec![0; CLUSTER as usize]);
        assert!(!order.needs_sync(&cluster(2)));
        order.set_freed(true);
        assert!(order.needs_sync(&cluster(2)));
    }

    #[test]
    fn tables_are_known_once_they_are_entered_and_where_they_move() {
        let mut order = order();
        assert!([0, 1, 2, 3, 4].iter().all(|number| order.is_table(number * CLUSTER)));
        assert!(!order.is_table(5 * CLUSTER));
        let mut entry = [0; 16];
        entry[8..].copy_from_slice(&((5 * CLUSTER) | (1 << 63)).to_be_bytes());
        order.wrote(&(3 * CLUSTER..3 * CLUSTER + 16), &entry);
        assert!(order.is_table(5 * CLUSTER));
        let mut header = vec![0; 72];
        header[36..40].copy_from_slice(&2u32.to_be_bytes());
        header[40..48].copy_from_slice(&(7 * CLUSTER).to_be_bytes());
        header[48..56].copy_from_slice(&CLUSTER.to_be_bytes());
        header[56..60].copy_from_slice(&1u32.to_be_bytes());
        order.wrote(&(0..72), &header);
        assert!(order.is_table(7 * CLUSTER) && !order.is_table(3 * CLUSTER) && order.has_freed());
    }

    #[test]
    fn tables_that_are_named_anew_are_counted_first() {
        let order = order();
        let mut l1 = [0; 16];
        l1[..8].copy_from_slice(&((4 * CLUSTER) | (1 << 63)).to_be_bytes());
        let range = 3 * CLUSTER..3 * CLUSTER + 16;
        assert!(order.named_anew(&range, &l1).is_empty(), "it was named before");
        l1[8..].copy_from_slice(&((9 * CLUSTER) | (1 << 63)).to_be_bytes());
        assert_eq!(order.named_anew(&range, &l1), [9 * CLUSTER]);
        assert_eq!(order.counter(9 * CLUSTER), Some((CLUSTER, 9, 16)));
        assert_eq!(order.counter(40_000 * CLUSTER), Some((CLUSTER + 8, 40_000 - 32_768, 16)));
        let blocks = [(2 * CLUSTER).to_be_bytes(), (7 * CLUSTER).to_be_bytes()].concat();
        assert_eq!(order.named_anew(&(CLUSTER..CLUSTER + 16), &blocks), [7 * CLUSTER]);
        let mut header = vec![0; 72];
        header[36..40].copy_from_slice(&10_000u32.to_be_bytes());
        header[40..48].copy_from_slice(&(20 * CLUSTER).to_be_bytes());
        assert_eq!(order.named_anew(&(0..72), &header), [20 * CLUSTER, 21 * CLUSTER]);
    }
}
